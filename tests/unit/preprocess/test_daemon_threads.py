"""Work in daemon threads: every result, or the error."""

import pytest

from video2world_preprocess.daemon_threads import in_daemon_threads


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_every_item_has_its_result(threads):
    assert sorted(in_daemon_threads(lambda n: n * n, range(5), threads)) == [0, 1, 4, 9, 16]


def test_the_error_of_an_item_is_raised():
    done = []

    def work(number):
        if number == 1:
            raise OSError("full")
        done.append(number)

    with pytest.raises(OSError, match="full"):
        list(in_daemon_threads(work, range(3), 1))
    assert done[:1] == [0]
