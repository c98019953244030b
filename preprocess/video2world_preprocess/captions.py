"""Caption every window of a dataset by a vision-language model (the captions stage).

Frames of the windows and their captions are sent to the OpenAI-compatible endpoint that --endpoint
names, and nowhere else. The answers replace the captions in metas/.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common.events import ProgressReporter, emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from video2world_common.files import remove_leftovers
from video2world_common.folder_locks import owned_in_splits
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
from video2world_preprocess.captioning.answers import MAX_TOKENS, InvalidAnswer, caption_of
from video2world_preprocess.captioning.endpoint import (
    Endpoint,
    EndpointUnusable,
    RequestRefused,
    Unanswered,
    checked_url,
)
from video2world_preprocess.captioning.frames import chosen_frames, read_pictures, scaled_size
from video2world_preprocess.captioning.records import FOLDER, Answers, ClipCaption, digest
from video2world_preprocess.item_faults import failed_items, is_unexpected, reason_for
from video2world_preprocess.stage_report import Report, write_report
from video2world_preprocess.video.decode import VideoInfo
from video2world_preprocess.video.reader import probe

__all__ = ["main", "parser"]

TOKEN = "CAPTIONS_TOKEN"  # the environment variable, not its value
ASKS = 3  # requests per window until an answer is a caption
MAX_HINT = 1000  # characters of the dataset's own caption that are sent
PIXELS_PER_TOKEN = 28 * 28  # of Qwen-VL; other models are similar
CHARACTERS_PER_TOKEN = 4
PROMPT = (
    "These pictures are frames of one video, in order, each with its time. Describe the video for "
    "training a video generation model. First the scene at its start: robot or camera viewpoint, "
    "objects with their colours and places. Then the motion in order: which arm or hand moves "
    "where, what it touches, and the result. State only what the frames show, in the present tense."
)
FORM = (
    "Answer with the description alone: plain English sentences in one paragraph of at most 200 "
    "words, without a heading, list, markup or comment."
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.captions",
        description=__doc__,
        epilog=f"The bearer token is read from the environment variable {TOKEN}.",
    )
    add = flags.add_argument
    add(
        "--dataset_path",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders with videos/*.mp4, such as datasets/NAME/train datasets/NAME/val",
    )
    add("--endpoint", required=True, help="base URL of the API, such as http://vllm:8000/v1")
    add("--model", required=True, help="name of the model at the endpoint")
    add("--prompt", default=PROMPT, help="what to describe (default: scene and motion of a robot)")
    add(
        "--frames_per_second",
        type=float,
        default=2.0,
        help="frames to send per second of video, always the first and last (default: 2)",
    )
    add("--max_frames", type=int, default=16, help="most frames per request (default: 16)")
    add("--max_tokens", type=int, default=512, help="most tokens of an answer (default: 512)")
    add("--parallel_requests", type=int, default=8, help="requests at the same time (default: 8)")
    add("--timeout_seconds", type=float, default=120.0, help="time for one answer (default: 120)")
    add(
        "--max_failed_percent",
        type=float,
        default=10.0,
        help="fail if more windows than this share keep the dataset's caption (default: 10)",
    )
    add(
        "--structured_output",
        action="store_true",
        help="ask for JSON by a schema (response_format)",
    )
    add(
        "--cache_dir",
        default="checkpoints/google-t5/t5-11b",
        help="folder of the T5 tokenizer, which counts an answer's tokens; if it is missing, they "
        "are estimated (default: checkpoints/google-t5/t5-11b)",
    )
    add(
        "--price_per_million_tokens",
        type=float,
        nargs=2,
        metavar=("PROMPT", "ANSWER"),
        help="prices, from which --dry_run computes the cost of the first answers",
    )
    add("--dry_run", action="store_true", help="estimate requests and tokens, and send nothing")
    return flags


@dataclass(frozen=True)
class _Clip:
    """A window to caption: what is sent for it, and where its caption is."""

    split: Path
    video: Path
    info: VideoInfo
    frames: list[int]
    current: ClipCaption
    key: str


@dataclass(frozen=True)
class _Work:
    """The clips by what is to be done with them."""

    answered: list[tuple[_Clip, str]]  # with the caption of an earlier run
    open: list[_Clip]
    total: int


def _check_flags(args: argparse.Namespace) -> None:
    args.endpoint = checked_url(args.endpoint)
    checks = (
        ("--model", args.model, bool(args.model.strip()), "a name"),
        ("--prompt", args.prompt, bool(args.prompt.strip()), "a text"),
        ("--frames_per_second", args.frames_per_second, args.frames_per_second > 0, "above 0"),
        ("--max_frames", args.max_frames, args.max_frames >= 2, "2 or more"),
        ("--max_tokens", args.max_tokens, args.max_tokens >= 16, "16 or more"),
        ("--parallel_requests", args.parallel_requests, args.parallel_requests >= 1, "1 or more"),
        ("--timeout_seconds", args.timeout_seconds, args.timeout_seconds > 0, "above 0"),
        ("--max_failed_percent", args.max_failed_percent, args.max_failed_percent >= 0, "0 to 100"),
    )
    for flag, value, is_valid, wanted in checks:
        if not is_valid:
            raise UserError(f"{flag} {value}: give {wanted}")
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"{TOKEN}: the token has characters that a header cannot have")


def _prompt(args: argparse.Namespace, info: VideoInfo, hint: str) -> str:
    lines = [args.prompt, f"The video lasts {info.seconds:.1f} s."]
    if hint:
        lines.append(
            "Its data set labels it as follows, which may be incomplete; use what agrees with the "
            f"frames: {_quoted(hint)}"
        )
    lines.append(FORM)
    return "\n\n".join(lines)


def _quoted(text: str) -> str:
    """Quote a text that may look like instructions."""
    return '"' + " ".join(text[:MAX_HINT].replace('"', "'").split()) + '"'


def _divided(args: argparse.Namespace, report: Report) -> _Work:
    """Find the clips of all splits, and which of them have an answer; report unusable ones."""
    work = _Work([], [], 0)
    total = 0
    for split in args.dataset_path:
        answers = Answers(split.parent)
        for video in sorted((split / "videos").glob("[!.]*.mp4")):
            total += 1
            try:
                current = ClipCaption.read(split, video.stem)
                if current.by_hand:
                    report.note("caption", str(current.meta), "was edited by hand and is kept")
                    continue
                clip = _clip(args, split, video, current)
            except ValueError as error:
                report.drop("caption", str(video), str(error))
            except Exception as error:
                report.drop("caption", str(video), reason_for(error, split))
            else:
                known = answers.get(clip.key)
                if known is None:
                    work.open.append(clip)
                else:
                    work.answered.append((clip, known))
    return dataclasses.replace(work, total=total)


def _clip(args: argparse.Namespace, split: Path, video: Path, current: ClipCaption) -> _Clip:
    info = probe(video)
    frames = chosen_frames(info, args.frames_per_second, args.max_frames)
    with video.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    key = digest([content, args.model, _prompt(args, info, current.own), frames])
    return _Clip(split, video, info, frames, current, key)


def _estimate(args: argparse.Namespace, work: _Work) -> None:
    """Print what will be sent if every first answer is a caption, before anything is."""
    images = sum(len(clip.frames) for clip in work.open)
    tokens = 0
    for clip in work.open:
        width, height = scaled_size(clip.info.width, clip.info.height)
        tokens += len(clip.frames) * math.ceil(width * height / PIXELS_PER_TOKEN)
        tokens += len(_prompt(args, clip.info, clip.current.own)) // CHARACTERS_PER_TOKEN
    requests, answers = len(work.open), len(work.open) * args.max_tokens
    minutes = requests / args.parallel_requests * 10 / 60
    say(
        f"captions: {work.total} windows, {requests} without an answer: {requests} requests with "
        f"{images} images to {args.endpoint} (model {args.model}), about {tokens} tokens, and at "
        f"most {answers} tokens of answers; {minutes:.1f} min if an answer takes 10 s"
    )
    if args.price_per_million_tokens:
        prompt, answer = args.price_per_million_tokens
        say(f"captions: at most {(tokens * prompt + answers * answer) / 1e6:.2f} at these prices")
    emit("size", "captions", requests=requests, images=images, prompt_tokens=tokens)


def _token_counter(folder: str) -> Callable[[str], int]:
    if Path(folder).is_dir():
        from video2world_preprocess.text.encoder import load_tokenizer

        tokenizer = load_tokenizer(folder)
        return lambda text: len(tokenizer(text).input_ids)
    # 300 words are at most 512 tokens in nearly all English texts
    return lambda text: math.ceil(len(text.split()) * MAX_TOKENS / 300)


class _Captioner:
    """Asks for the captions of clips, several at a time."""

    def __init__(self, args: argparse.Namespace, endpoint: Endpoint, report: Report) -> None:
        self._args, self._endpoint, self._report = args, endpoint, report
        self._tokens = _token_counter(args.cache_dir)
        self._failures = 0  # requests without any answer, one after the other
        self.captions: list[tuple[_Clip, str]] = []

    async def run(self, clips: Sequence[_Clip]) -> None:
        """Ask for the caption of every clip.

        Raises:
            UserError: the endpoint refuses every request.
            ConnectionError: the endpoint does not answer.
            OSError: the volume failed.
        """
        progress = ProgressReporter("captions", len(clips), "captions")
        left = iter(clips)
        async with self._endpoint:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._args.parallel_requests, len(clips))):
                        group.create_task(self._work(left, progress))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _work(self, clips: Iterator[_Clip], progress: ProgressReporter) -> None:
        for clip in clips:
            try:
                caption = await self._caption(clip)
                Answers(clip.split.parent).put(clip.key, caption, self._args.model)
                self.captions.append((clip, caption))
            except (InvalidAnswer, RequestRefused, Unanswered) as error:
                self._report.drop("caption", str(clip.video), self._reason(error))
            except EndpointUnusable:
                raise
            except Exception as error:
                reason = reason_for(error, clip.split)
                self._report.drop("caption", str(clip.video), reason)
            progress.advance()

    def _reason(self, error: Exception) -> str:
        """Return why a clip has no caption; raise if no clip will have one."""
        if isinstance(error, InvalidAnswer):
            return f"none of {ASKS} answers is a caption: the last {error}"
        self._failures += 1
        limit = max(3, self._args.parallel_requests)
        url = self._args.endpoint
        if isinstance(error, RequestRefused):
            if self._failures >= limit:
                raise UserError(
                    f"{url} refuses all requests ({error}): correct "
                    "spec.dataset.captions; finished captions are kept"
                )
            return f"the endpoint refuses the request ({error})"
        if self._failures >= limit:
            raise ConnectionError(
                f"{url} does not answer ({error}): check that the endpoint is running and can be "
                "reached from here; finished captions are kept"
            )
        return f"unexpected failure of the endpoint: {error}"

    async def _caption(self, clip: _Clip) -> str:
        args, numbers = self._args, clip.frames
        structured, asked = args.structured_output, 0
        while True:
            pictures = await asyncio.to_thread(read_pictures, clip.video, clip.info, numbers)
            prompt = _prompt(args, clip.info, clip.current.own)
            try:
                answer = await self._endpoint.ask(prompt, pictures, structured=structured)
            except RequestRefused:
                if len(numbers) <= 2 or self._failures:
                    raise
                numbers = _thinned(numbers)  # too long for the model, or too large for a proxy
                continue
            self._failures, asked = 0, asked + 1
            try:
                if not answer.complete:
                    raise InvalidAnswer(f"is cut off at {args.max_tokens} tokens")
                return caption_of(answer.text, structured=structured, tokens=self._tokens)
            except InvalidAnswer:
                if asked == ASKS:
                    raise
                structured = False  # servers may loop under a schema until the limit


def _thinned(numbers: list[int]) -> list[int]:
    """Return about half of the frames, with the first and the last."""
    return sorted({*numbers[:-1:2], numbers[-1]}) if len(numbers) > 3 else [numbers[0], numbers[-1]]


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    _check_flags(args)
    if not any((split / "videos").is_dir() for split in args.dataset_path):
        paths = " ".join(map(str, args.dataset_path))
        raise UserError(
            f"--dataset_path {paths}: the folder videos/ is missing: run the dataset stage first"
        )
    made = Provenance.of(*(split / "videos" for split in args.dataset_path))
    settings = {
        "model": args.model,
        "prompt": digest(args.prompt),
        "framesPerSecond": args.frames_per_second,
        "maxFrames": args.max_frames,
    }
    remedy = "give the dataset another name (spec.dataset), or use the same captions"
    with owned_in_splits(args.dataset_path, "videos", FOLDER, settings, remedy) as made.owned:
        for dataset in {split.parent for split in args.dataset_path}:
            remove_leftovers(Answers(dataset).folder)
        files, report = _caption_all(args)
        made.failed = failed_items(report)
        return made.left(files), report.summary()


def _caption_all(args: argparse.Namespace) -> tuple[list[Path], Report]:
    report = Report("captions")
    work = _divided(args, report)
    if not work.total:
        raise UserError(
            f"--dataset_path {args.dataset_path[0]}: no videos/*.mp4: run the dataset stage first"
        )
    _estimate(args, work)
    token = os.environ.get(TOKEN, "").strip()
    endpoint = Endpoint(
        args.endpoint,
        args.model,
        token,
        args.max_tokens,
        args.timeout_seconds,
        args.parallel_requests,
    )
    captioner = _Captioner(args, endpoint, report)
    try:
        if work.open:
            asyncio.run(captioner.run(work.open))
    finally:
        captions = [*work.answered, *captioner.captions]
        report.counts |= {
            "captions": len(captions),
            "made": len(captioner.captions),
            "kept": len(work.answered),
            "different_captions": len({caption for _, caption in captions}),
            **vars(endpoint.usage),
        }
    _check_share(args, report, work.total)
    files = []
    captioned = {clip.video for clip, _ in captions}
    for clip in work.open:
        if clip.video not in captioned:  # may have the answer to another prompt
            clip.current.restore(clip.split)
    for clip, caption in captions:
        clip.current.replace(clip.split, caption)
        files += [clip.current.meta, clip.split / FOLDER / f"{clip.video.stem}.json"]
    write_report(args.dataset_path[0].parent, report, [clip.video for clip, _ in captions])
    report.show()
    return files, report


def _check_share(args: argparse.Namespace, report: Report, total: int) -> None:
    """Fail if too many windows have no caption of the model.

    Raises:
        UserError: other answers or another prompt are needed.
        OSError: another attempt may succeed.
    """
    failed = len(report.dropped)
    if 100 * failed <= args.max_failed_percent * total:
        return
    write_report(args.dataset_path[0].parent, report)
    report.show()
    reasons = [problem.reason for problem in report.dropped]
    message = (
        f"{failed} of {total} windows have no usable caption (--max_failed_percent "
        f"{args.max_failed_percent:g}), for example: {reasons[-1]}; the answers for the others are "
        "kept"
    )
    if any(map(is_unexpected, reasons)):
        raise OSError(message)
    raise UserError(f"{message}; change the prompt or the model (spec.dataset.captions)")


def _dry_run(args: argparse.Namespace) -> int:
    """Print the estimate, and change nothing."""
    try:
        _check_flags(args)
        report = Report("captions")
        work = _divided(args, report)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILURE
    _estimate(args, work)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    if args.dry_run:
        return _dry_run(args)
    return run_stage(lambda: _work(args), stage="captions")


if __name__ == "__main__":
    sys.exit(main())
