"""Samples beside training on this machine: the order of things, by a scripted group."""

from video2world_operator.local.sampler import Sampler


class Script:
    """Groups that end when the test says so."""

    def __init__(self):
        self.codes, self.log = {}, []
        self.sampler = Sampler(self.start, lambda *what: self.log.append(what))

    def start(self, iteration):
        script = self
        script.log.append(f"start {iteration}")

        class Group:
            def poll(self):
                return script.codes.get(iteration)

            def stop(self, *, hard):
                script.log.append("kill" if hard else "stop")
                if hard:
                    script.codes[iteration] = -9

        return Group()


def test_one_at_a_time_and_the_newest_next():
    script = Script()
    script.sampler.tick()
    for iteration in (1, 1):
        script.sampler.offer(iteration)
    script.sampler.tick()
    for iteration in (1, 2, 3):
        script.sampler.offer(iteration)
    script.sampler.tick()
    assert script.log == ["start 1", (2, None)]
    script.codes[1] = 1
    script.sampler.tick()
    assert script.log[2:] == [(1, 1), "start 3"]
    assert script.sampler.iteration == 3


def test_the_end_of_training_waits_for_what_runs_and_starts_nothing():
    script = Script()
    script.sampler.offer(1)
    script.sampler.tick()
    script.sampler.offer(2)
    asked = iter([False, False])

    def stopped():
        script.codes[1] = 0
        return next(asked)

    script.sampler.finish(stopped, pause=0)
    assert script.log == ["start 1", (2, None), (1, 0)]
    assert script.sampler.iteration is None


def test_a_stop_is_asked_for_and_then_enforced():
    script = Script()
    script.sampler.offer(1)
    script.sampler.tick()
    script.sampler.offer(2)
    script.sampler.stop(seconds=(0.01, 1.0), pause=0)
    assert script.log == ["start 1", "stop", "kill", (1, -9)]
