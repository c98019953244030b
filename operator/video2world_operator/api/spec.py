"""Define the spec of a resource as typed, bounded fields.

The CRD is generated from these models (:mod:`video2world_operator.api.crd_schema`). Optional fields
without a default are decided by the model's size; the properties at the end of :class:`Spec` say
what then applies.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from video2world_common.model_sizes import SIZES
from video2world_operator.api.fields import (
    _CHECKPOINTS,
    _NAME,
    LABEL_KEY,
    CheckpointName,
    EpisodeID,
    FolderName,
    Iteration,
    RepoID,
    Revision,
    Text,
    VolumePath,
    _by_example,
    _Model,
    _no_boolean,
    _text,
)
from video2world_operator.api.pods import (
    CredentialsSpec,
    ImagesSpec,
    SchedulingSpec,
    StagesSpec,
    StorageSpec,
)

__all__ = ["Sample", "Spec"]

NAME_WORDS = "lowercase letters, digits and dashes, starting with a letter, at most {} characters"
ClipName = Annotated[
    str, _text(200, "a file name without folder and ending", "clip_001", r"^[^-/$\x00][^/$\x00]*$")
]


class ModelSpec(_Model):
    """Which Cosmos-Predict2 Video2World model is post-trained."""

    size: Literal["Tiny", "2B", "14B"] = Field(
        description="Parameters of the base model; Tiny is a small one of the same classes that "
        "trains on two CPU cores, for demonstrations. Required, unless the experiment gives it."
    )
    resolution: Literal["480p", "720p"] = Field(
        default="720p",
        description="Picture size in pixels: 720p is 704x1280, 480p is 432x768 (height x width). "
        "Tiny is always 96x128.",
    )
    fps: Annotated[Literal[10, 16], BeforeValidator(_no_boolean)] = Field(
        default=16,
        description="Frames per second of the base weights: 16 trains on clips of 93 frames, 10 on "
        "clips of 61. Tiny always trains on 17.",
    )
    geometry: Literal["Crop", "Stretch"] = Field(
        default="Crop",
        description="How a video is brought to the picture size: scaled to cover and cropped at "
        "the centre, or stretched. The guide's experiments stretch.",
    )
    rope_ratio: float | None = Field(
        default=None,
        ge=0.1,
        le=16,
        description="Extrapolation ratio of the rotary position embedding over height and width; "
        "default as the base weights: 3 for 2B, 2 for 14B, 1 for Tiny.",
    )
    weights: VolumePath | None = Field(
        default=None,
        description="Transformer weights on the volume to start from (.pt or .safetensors); "
        "default the downloaded base weights.",
        examples=["weights/mine.pt"],
    )
    lora_alpha: float | None = Field(
        default=None,
        ge=0.001,
        le=4096,
        description="Alpha of the LoRA adapters in weights, if it is a file with adapters that "
        "does not say it, as the original's; they are scaled by alpha divided by their rank.",
    )


class AgiBotDataset(_Model):
    """Episodes of AgiBotWorld-Alpha, cut into windows with captions."""

    task_ids: list[Annotated[int, Field(ge=0, le=1_000_000)]] = Field(
        default=[327],
        alias="taskIDs",
        min_length=1,
        max_length=64,
        description="Numbers of the AgiBotWorld tasks to take.",
    )
    validation_episode_ids: list[EpisodeID] = Field(
        default=[],
        alias="validationEpisodeIDs",
        max_length=1024,
        description="Episodes held out of training, put under val/.",
    )
    window_seconds: float = Field(
        default=5,
        ge=0.5,
        le=60,
        description="Length of one window in seconds, at the source's 30 fps.",
    )
    camera: Literal[
        "head_center_fisheye_color",
        "head_color",
        "head_left_fisheye_color",
        "head_right_fisheye_color",
        "back_left_fisheye_color",
        "back_right_fisheye_color",
        "hand_left_color",
        "hand_right_color",
    ] = Field(
        default="head_center_fisheye_color",
        description="The one camera whose videos are extracted.",
    )
    repo_id: RepoID = Field(
        default="agibot-world/AgiBotWorld-Alpha",
        alias="repoID",
        description="Dataset repository on the Hugging Face Hub.",
    )
    revision: Revision | None = Field(
        default=None,
        description="Commit, tag or branch of the repository; default its newest state.",
    )
    caption_file: VolumePath | None = Field(
        default=None,
        description="JSON file of captions on the volume; default captions composed from AgiBot's "
        "own task_info.",
        examples=["captions.json"],
    )
    path: VolumePath | None = Field(
        default=None,
        description="Folder on the volume that holds the AgiBotWorld-Alpha tree already; with it "
        "nothing is downloaded, and its archives are left as they are. Default: downloaded.",
    )
    keep_archives: bool = Field(
        default=False, description="Keep downloaded archives once their videos are extracted."
    )
    name: FolderName | None = Field(
        default=None, description="Folder of the result under datasets/; default agibot_<camera>."
    )


class PreparedDataset(_Model):
    """A data set in the guide's layout that is on the volume already."""

    path: VolumePath = Field(
        description="Folder with train/{metas,videos} and val/{metas,videos}, relative to the "
        "volume's root, such as datasets/mine."
    )


class VideosDataset(_Model):
    """Your own videos, each with its caption beside it: clip.mp4 and clip.txt."""

    path: VolumePath = Field(
        description="Folder of videos and captions, relative to the volume's root."
    )
    validation_names: list[ClipName] = Field(
        default=[],
        max_length=1024,
        description="Videos held out of training, by file name without the ending.",
    )
    window_seconds: float = Field(
        default=5,
        ge=0.5,
        le=60,
        description="Length in seconds of the windows that videos are cut into.",
    )
    name: FolderName | None = Field(
        default=None,
        description="Folder of the result under datasets/; default the resource's name.",
    )


class DatasetSpec(_Model):
    """Where the training videos come from: exactly one of agibot, prepared, videos."""

    model_config = _by_example({"agibot": {"taskIDs": [327]}})

    agibot: AgiBotDataset | None = Field(default=None, description="Tasks of AgiBotWorld-Alpha.")
    prepared: PreparedDataset | None = Field(
        default=None, description="A folder in the guide's layout, on the volume already."
    )
    videos: VideosDataset | None = Field(default=None, description="A folder of your own videos.")
    shards: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Pods that fetch and cut the videos between them; more than one need a volume "
        "that several nodes can write (ReadWriteMany).",
    )


class CheckpointSpec(_Model):
    """When checkpoints are written and how many stay."""

    every_iterations: int = Field(
        default=500, ge=1, le=10_000_000, description="Iterations between two checkpoints."
    )
    keep: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Newest checkpoints that stay; older ones are deleted.",
    )


class LoRASpec(_Model):
    """Low-rank adapters, used when the architecture is LoRA."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: float = Field(
        default=16, ge=0.001, le=4096, description="Adapters are scaled by alpha divided by rank."
    )


class TrainingSpec(_Model):
    """How the model is trained, and on what."""

    model_config = _by_example({"iterations": 1000})

    experiment: Text | None = Field(
        default=None,
        description="A named experiment of the guide, which sets model and training as the guide "
        "does; fields given here stand against it. Default: none.",
        examples=["predict2_video2world_training_2b_agibot_head_center_fisheye_color"],
    )
    overrides: list[Annotated[str, _text(512, "name=value", "optimizer.lr=1e-5")]] = Field(
        default=[],
        max_length=64,
        description="Overrides of the guide's command line, as name=value; each means the field "
        "of this resource that does the same.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps to train in all; raise it to train on. Required, unless the "
        "experiment gives it (100000).",
    )
    nodes: int | None = Field(
        default=None, ge=1, le=1024, description="Pods of the train group; default 1, for 14B 4."
    )
    gpus_per_node: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="Processes per node, one GPU each (none each if the device is CPU); default "
        "8, for Tiny 1.",
    )
    device: Literal["Auto", "CPU", "GPU"] = Field(
        default="Auto",
        description="What the model runs on; Auto is CPU for Tiny and GPU for the others.",
    )
    context_parallel_size: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Processes that share one clip; default 2, for 14B 8, for Tiny 1.",
    )
    architecture: Literal["Base", "LoRA"] = Field(
        default="Base", description="Train all weights, or low-rank adapters only."
    )
    lora: LoRASpec = Field(default_factory=lambda: LoRASpec(), description="Adapters for LoRA.")
    attention: Literal[
        "Auto",
        "FlashAttention4",
        "FlashAttention3",
        "FlashAttention2",
        "TransformerEngine",
        "Torch",
    ] = Field(default="Auto", description="Attention kernel; Auto takes the best that the GPU has.")
    batch_size: int = Field(
        default=1, ge=1, le=1024, description="Clips per step in each context-parallel group."
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Base learning rate of AdamW; default 2^-15.5, for Tiny 0.002.",
        examples=[1e-5],
    )
    warmup_iterations: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Iterations over which the learning rate rises; default 2000, for Tiny 50.",
    )
    clips_per_window: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Clips encoded from each window, at different first frames.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of noise, data order and clip positions."
    )
    ema: bool = Field(
        default=True,
        description="Keep an exponential moving average of the weights in checkpoints.",
    )
    checkpoint: CheckpointSpec = Field(
        default_factory=lambda: CheckpointSpec(),
        description="When checkpoints are written and kept.",
    )
    max_restarts: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="Restarts after a crash of the trainer before the resource fails; lost nodes "
        "and preemption are not counted.",
    )
    restart_backoff_seconds: int = Field(
        default=10,
        ge=0,
        le=3600,
        description="Seconds before the first restart after a crash; doubled for each further one, "
        "up to ten minutes. Restarts that are not counted do not wait.",
    )
    hang_timeout_seconds: int = Field(
        default=1800,
        ge=30,
        le=86400,
        description="Seconds without an iteration after which the trainer ends itself with the "
        "stacks of its threads, so that a hung collective does not hold GPUs; the group restarts.",
    )
    gradient_clip_norm: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Gradients are scaled down to this norm; default not at all, as upstream does.",
        examples=[1.0],
    )
    stop_when_diverged: bool = Field(
        default=False,
        description="End the run as failed when its loss diverges (stays far above its lowest, or "
        "above that of predicting nothing), keep the last checkpoint from before and delete those "
        "after it; otherwise status and results page only warn.",
    )
    interconnect: Literal["Auto", "Ethernet", "InfiniBand", "RoCE", "EFA"] = Field(
        default="Auto",
        description="What NCCL uses between nodes; Auto leaves it to NCCL. Device resources of the "
        "network (rdma/..., vpc.amazonaws.com/efa) go into stages.train.resources.",
    )
    rendezvous_port: int = Field(
        default=29500,
        ge=1024,
        le=65533,
        description="TCP port at which the nodes meet; the two next ones are used too, the second "
        "of them for the figures that training tells Prometheus.",
    )
    job_name: FolderName | None = Field(
        default=None,
        description="Folder of the run under checkpoints/posttraining/video2world/ and results/; "
        "default the resource's name, with an experiment the guide's.",
    )


_OUTPUT = _text(
    100,
    "a file name ending in .mp4: letters, digits, dots, dashes and underscores, at most 100 "
    "characters",
    "first.mp4",
    rf"{_NAME}\.mp4$",
)


class Sample(_Model):
    """One video to generate."""

    model_config = _by_example({"input": "val/videos/x.mp4"})

    input: VolumePath = Field(
        description="Picture or video to continue: a path on the volume, or under the data set's "
        "folder if it begins with val/ or train/.",
        examples=["val/videos/x.mp4"],
    )
    prompt: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="",
        description="Caption of the video to generate; empty takes the caption of the input.",
    )
    output: Annotated[str, _OUTPUT] | None = Field(
        default=None,
        description="File name of the result, ending in .mp4; default sample-<number>.mp4.",
    )


_CHECKPOINT = _text(512, _CHECKPOINTS, "latest", r"^(latest|[0-9]+|[A-Za-z0-9_.][^$\x00]*)$")


class InferenceSpec(_Model):
    """Videos generated from the post-trained checkpoints; without samples, none."""

    samples: list[Sample] = Field(default=[], max_length=64, description="Videos to generate.")
    checkpoint: Annotated[str, _CHECKPOINT] | None = Field(
        default=None,
        description="What generates: latest (the default), the number of an iteration, or a "
        "weights file on the volume.",
    )
    checkpoints: list[CheckpointName | Iteration] = Field(
        default=[],
        max_length=64,
        description="Instead of checkpoint, several: each latest, all (those on the volume), the "
        "number of an iteration, or a weights file on the volume, without .. in its path. Samples "
        "of several checkpoints lie in a folder for each, such as results/<job>/iter_000000500/.",
    )
    every_checkpoint: bool = Field(
        default=False,
        description="Make the samples from each checkpoint while training goes on, by a Job of "
        "its own: one at a time, the newest checkpoint first; those that are overtaken meanwhile "
        "are passed over.",
    )
    parallelism: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pods that make samples at the same time, each its share; more than one need "
        "a volume that several nodes can write (ReadWriteMany).",
    )
    weights: Literal["Regular", "EMA"] = Field(
        default="Regular",
        description="Which weights of a checkpoint generate: those that are trained, or their "
        "exponential moving average (training.ema).",
    )
    num_conditional_frames: Annotated[Literal[1, 5], BeforeValidator(_no_boolean)] = Field(
        default=1, description="Frames of the input that the video continues."
    )
    guidance: float = Field(
        default=7, ge=0, le=100, description="Weight of classifier-free guidance; 0 is without."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the first noise.")
    steps: int = Field(default=35, ge=1, le=1000, description="Steps of the sampler.")
    lora_alpha: float | None = Field(
        default=None,
        ge=0.001,
        le=4096,
        description="Alpha of the LoRA adapters in weights files among the checkpoints that do not "
        "say it, as the original's; they are scaled by alpha divided by their rank.",
    )

    @property
    def names(self) -> list[str]:
        """The checkpoints of the inference stage, as they are named."""
        return [str(name) for name in self.checkpoints] or [self.checkpoint or "latest"]

    @property
    def count(self) -> int | None:
        """How many these are; None while that is not known."""
        return None if "all" in self.names else len(set(self.names))

    @property
    def by_checkpoint(self) -> bool:
        """Whether every checkpoint's samples lie in a folder of their own."""
        return self.every_checkpoint or self.count != 1

    def pods(self, checkpoints: int | None) -> int:
        """Pods that share the samples of so many ``checkpoints``: none without work."""
        work = len(self.samples) * (checkpoints or self.parallelism)
        return max(1, min(self.parallelism, work))


class Spec(_Model):
    """What is wanted."""

    model_config = _by_example(
        {
            "model": {"size": "2B"},
            "dataset": {"agibot": {"taskIDs": [327]}},
            "training": {"iterations": 1000},
        }
    )

    model: ModelSpec = Field(description="The model that is post-trained.")
    dataset: DatasetSpec = Field(description="The training videos.")
    training: TrainingSpec = Field(description="How it is trained.")
    inference: InferenceSpec = Field(
        default_factory=lambda: InferenceSpec(), description="Videos to generate afterwards."
    )
    storage: StorageSpec = Field(default_factory=lambda: StorageSpec(), description="The volume.")
    credentials: CredentialsSpec = Field(
        default_factory=lambda: CredentialsSpec(), description="Secrets that stages read."
    )
    scheduling: SchedulingSpec = Field(
        default_factory=lambda: SchedulingSpec(), description="Queue, gang and placement."
    )
    images: ImagesSpec = Field(
        default_factory=lambda: ImagesSpec(), description="Container images."
    )
    stages: StagesSpec = Field(
        default_factory=lambda: StagesSpec(), description="Settings of single stages."
    )
    suspend: bool = Field(
        default=False,
        description="Save a checkpoint, end all pods and wait until it is false again.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Seconds of work after which the resource fails, counted anew after each "
        "resume; default without end.",
    )
    cleanup_policy: Literal["Running", "All"] = Field(
        default="Running",
        description="Which Jobs are deleted at the end: only those still running (so that the "
        "others' logs can be read), or all.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="Seconds after its end at which the resource is deleted; default never.",
    )

    @property
    def tiny(self) -> bool:
        """Whether the demonstration model is meant, whose picture and clip are fixed."""
        return self.model.size == "Tiny"

    @property
    def iterations(self) -> int:
        """Optimizer steps in all."""
        return self.training.iterations or 0

    @property
    def nodes(self) -> int:
        """Pods of the train group."""
        return self.training.nodes or SIZES[self.model.size].nodes

    @property
    def sharing(self) -> int:
        """Pods that use the volume at the same time, at most."""
        sampling = self.inference.pods(1) if self.inference.every_checkpoint else 0
        stage = self.inference.pods(self.inference.count)
        return max(self.nodes + sampling, self.dataset.shards, stage)

    @property
    def processes_per_node(self) -> int:
        """Processes that torchrun starts on each node."""
        return self.training.gpus_per_node or SIZES[self.model.size].processes_per_node

    @property
    def context_parallel(self) -> int:
        """Processes that share one clip."""
        return self.training.context_parallel_size or SIZES[self.model.size].context_parallel_size

    @property
    def volume_size(self) -> str:
        """Size of the claim that is made."""
        return self.storage.size or SIZES[self.model.size].volume_size

    @property
    def device(self) -> str:
        """CPU or GPU."""
        chosen = self.training.device
        return SIZES[self.model.size].device if chosen == "Auto" else chosen

    @property
    def gpus(self) -> int:
        """GPUs that the train group holds."""
        return 0 if self.device == "CPU" else self.nodes * self.processes_per_node

    @property
    def rope_ratios(self) -> tuple[float, float, float]:
        """Extrapolation ratios over height, width and time."""
        height, width, time = SIZES[self.model.size].rope_ratios
        ratio = self.model.rope_ratio
        return (height, width, time) if ratio is None else (ratio, ratio, time)

    @property
    def learning_rate(self) -> float:
        """Base learning rate of AdamW."""
        return self.training.learning_rate or SIZES[self.model.size].learning_rate

    @property
    def warmup_iterations(self) -> int:
        """Iterations over which the learning rate rises."""
        given = self.training.warmup_iterations
        return SIZES[self.model.size].warmup_iterations if given is None else given

    @property
    def num_frames(self) -> int:
        """Pixel frames of one clip."""
        return SIZES[self.model.size].clip_frames[self.model.fps]

    @property
    def video_size(self) -> tuple[int, int]:
        """Height and width of one frame in pixels."""
        return SIZES[self.model.size].frame_sizes[self.model.resolution]


NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        examples=["vision"],
        json_schema_extra={
            "words": "letters, digits, dashes, dots and underscores, a letter or digit at both "
            "ends, at most 63 characters"
        },
    ),
]
ANNOTATION_KEY = LABEL_KEY.replace(
    "[a-z0-9]([-a-z0-9]*[a-z0-9])?", "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
)
AnnotationKey = Annotated[
    str,
    _text(
        316, "the key of an annotation, as Kubernetes has them", "example.com/owner", ANNOTATION_KEY
    ),
]
