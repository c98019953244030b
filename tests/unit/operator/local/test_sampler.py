"""The order in which checkpoints are sampled alongside local training, with scripted jobs."""

from video2world_operator.local.sample_queue import SampleQueue


class Script:
    """Jobs that end when the test says so."""

    def __init__(self):
        self.codes, self.log = {}, []
        self.queue = SampleQueue(self.start, lambda *what: self.log.append(what))

    def start(self, iteration):
        script = self
        script.log.append(f"start {iteration}")

        class Job:
            def poll(self):
                return script.codes.get(iteration)

            def stop(self, *, force):
                script.log.append("kill" if force else "stop")
                if force:
                    script.codes[iteration] = -9

        return Job()


def test_one_at_a_time_and_the_newest_next():
    script = Script()
    script.queue.tick()
    for iteration in (1, 1):
        script.queue.offer(iteration)
    script.queue.tick()
    for iteration in (1, 2, 3):
        script.queue.offer(iteration)
    script.queue.tick()
    assert script.log == ["start 1", (2, None)]
    script.codes[1] = 1
    script.queue.tick()
    assert script.log[2:] == [(1, 1), "start 3"]
    assert script.queue.iteration == 3


def test_the_end_of_training_waits_for_what_runs_and_starts_nothing():
    script = Script()
    script.queue.offer(1)
    script.queue.tick()
    script.queue.offer(2)
    asked = iter([False, False])

    def stopped():
        script.codes[1] = 0
        return next(asked)

    script.queue.finish(stopped, pause=0)
    assert script.log == ["start 1", (2, None), (1, 0)]
    assert script.queue.iteration is None


def test_a_stop_is_asked_for_and_then_enforced():
    script = Script()
    script.queue.offer(1)
    script.queue.tick()
    script.queue.offer(2)
    script.queue.stop(seconds=(0.01, 1.0), pause=0)
    assert script.log == ["start 1", "stop", "kill", (1, -9)]
