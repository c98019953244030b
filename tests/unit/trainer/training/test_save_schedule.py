"""When checkpoints are saved: at fixed iterations, or by what saving costs."""

import pytest

from tiny_training import JOB, events, finish, start
from video2world_common.checkpoint_interval import FIRST_SAVE, Measured, choose
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.process_group import World
from video2world_trainer.training import save_schedule
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.phases import phases_of
from video2world_trainer.training.progress import Progress
from video2world_trainer.training.save_schedule import VARIABLE, SaveSchedule

BETWEEN = 100.0
SETTINGS = ["model.size=Tiny", "job.name=a", "trainer.max_iter=1000"]


class Run:
    """A run whose iterations and saves take as long as a test says."""

    def __init__(self, monkeypatch, *settings, progress=None, between=BETWEEN):
        self.now = 0.0
        monkeypatch.setattr(save_schedule.time, "monotonic", lambda: self.now)
        monkeypatch.setenv(VARIABLE, str(between))
        config = read_config([*SETTINGS, *settings])
        self.progress = progress or Progress()
        self.schedule = SaveSchedule(config, World(), self.progress, phases_of(config))

    def train(self, to, *, iteration=0.5, save=0.02, write=0.0):
        """Return the iterations of the checkpoints that are saved up to iteration ``to``."""
        saved = []
        while self.progress.iteration < to:
            self.progress.iteration += 1
            self.now += iteration
            if self.schedule.is_due():
                saved.append(self.progress.iteration)
                self.now += save
                self.schedule.saved(save, write)
        return saved


def test_a_fixed_interval(monkeypatch):
    run = Run(monkeypatch, "checkpoint.save_iter=7")
    assert run.train(30) == [7, 14, 21, 28]
    assert run.schedule.interval is None
    assert run.progress.measured == {}


def test_the_first_save_measures_and_the_next_ones_follow(monkeypatch):
    run = Run(monkeypatch, "checkpoint.save_iter=auto")
    every = choose(Measured(0.02, 0, 0.5), BETWEEN).iterations
    assert every == 4
    assert run.train(FIRST_SAVE + 10) == [FIRST_SAVE, FIRST_SAVE + every, FIRST_SAVE + 2 * every]
    assert run.schedule.interval.reason == "saves cost 0.02 s, a failure every 1m40s expected"


def test_a_resumed_run_keeps_the_interval_until_it_has_measured_again(monkeypatch):
    run = Run(monkeypatch, "checkpoint.save_iter=auto")
    (*_, last) = run.train(60)
    restored = Progress()
    restored.restore({**vars(run.progress), "iteration": last})
    # twice as many failures, on nodes that take four times as long
    again = Run(monkeypatch, "checkpoint.save_iter=auto", progress=restored, between=BETWEEN / 2)
    again.schedule.resume()
    first = choose(Measured(0.02, 0, 0.5), BETWEEN / 2).iterations
    assert again.train(last + first, iteration=2) == [last + first]
    slow = choose(Measured(0.02, 0, 2), BETWEEN / 2).iterations
    assert slow < first
    later = again.train(last + 40, iteration=2)
    assert later[-1] - later[-2] == slow


def test_a_save_is_not_begun_while_the_last_is_still_written(monkeypatch):
    run = Run(monkeypatch, "checkpoint.save_iter=auto")
    run.train(FIRST_SAVE)
    later = run.train(200, write=20.0)  # after the second save it is known: 80 iterations
    assert later[-1] - later[-2] == 80


def test_phases_end_with_a_checkpoint_and_are_measured_anew(monkeypatch):
    phases = "trainer.phases=[[432,768,70],[704,1280]]"
    run = Run(monkeypatch, "model.size=2B", phases, "checkpoint.save_iter=auto")
    assert run.train(70)[-1] == 70
    assert run.train(70 + FIRST_SAVE, iteration=5)[0] == 70 + FIRST_SAVE
    assert run.progress.measured["iteration"] == 5


def test_validated_iterations_are_saved(monkeypatch):
    validation = ["trainer.run_validation=true", "trainer.validation_iter=10"]
    run = Run(monkeypatch, *validation, "checkpoint.save_iter=auto")
    assert set(range(30, 100, 10)) <= set(run.train(100))
    rare = Run(monkeypatch, *validation, "checkpoint.save_iter=auto", between=1e6)
    assert all(n % 10 == 0 for n in rare.train(999))


@pytest.mark.parametrize("text", ["often", "0", "-3", "inf", "nan"])
def test_an_invalid_expectation_is_refused(monkeypatch, text):
    with pytest.raises(UserError, match=f"{VARIABLE}={text}: this must be a number of seconds"):
        Run(monkeypatch, "checkpoint.save_iter=auto", between=text)


def test_a_training_chooses_reports_and_resumes(here, volume, monkeypatch):
    monkeypatch.setenv(VARIABLE, "5")
    code, out = here(volume, "checkpoint.save_iter=auto", "trainer.max_iter=60")
    assert code == 0, out
    saved = [one["iteration"] for one in events(out, "checkpoint")]
    assert saved[0] == FIRST_SAVE
    assert saved[-1] == 60
    reports = events(out, "progress")
    assert "checkpoint_interval" not in reports[FIRST_SAVE - 1]
    chosen = reports[FIRST_SAVE]["checkpoint_interval"]
    assert chosen >= 1
    assert saved[1] == min(FIRST_SAVE + chosen, 60)
    reason = reports[FIRST_SAVE]["checkpoint_interval_reason"]
    assert reason.startswith("saves cost ")
    assert "a failure every 5s expected" in reason
    assert f"checkpoints every {chosen} iterations: {reason}" in out

    code, out = here(volume, "checkpoint.save_iter=auto", "trainer.max_iter=70")
    assert code == 0, out
    assert events(out, "progress")[0]["checkpoint_interval"] >= 1  # known from the start
    assert (volume / JOB / "model/iter_000000070.pt").exists()


@pytest.mark.slow
def test_ranks_agree_on_the_iterations_of_saves(volume, monkeypatch):
    """A save is collective: ranks that disagreed would wait for each other until the timeout."""
    monkeypatch.setenv(VARIABLE, "1")
    settings = ["checkpoint.save_iter=auto", "trainer.max_iter=60", "trainer.timeout_seconds=120"]
    code, out = finish(start(volume, *settings, ranks=2))
    assert code == 0, out
    saved = [one["iteration"] for one in events(out, "checkpoint")]
    chosen = events(out, "progress")[FIRST_SAVE]["checkpoint_interval"]
    assert saved[:2] == [FIRST_SAVE, min(FIRST_SAVE + chosen, 60)]
    assert saved[-1] == 60
