"""Write the rules between fields as CEL, which the API server evaluates.

Each rule has a counterpart in :mod:`video2world_operator.api.validation`, which names the field and
the remedy more precisely; tests/cluster/test_any_spec.py holds the two together over generated
specs. Rules about changes are generated from :mod:`video2world_operator.api.mutability`.
"""

from __future__ import annotations

from video2world_common.attention_pattern import DENSE_WEIGHTS, SPARSE_WEIGHTS
from video2world_common.experiments import PREFIX
from video2world_common.model_sizes import SIZES
from video2world_operator.api.cel_action_rules import action_rules, actions_rules
from video2world_operator.api.cel_claim_rules import claim_rules
from video2world_operator.api.cel_expressions import (
    LAST_PHASE,
    NAME,
    NOT_EMPTY,
    PHASED,
    VALUE,
    CELRule,
    by_size,
    or_default,
    overridden,
    rule,
)
from video2world_operator.api.cel_training_rules import (
    HELD_OUT,
    automatic_interval_rules,
    holds_out,
    min_nodes_rules,
    phases_rules,
    validation_rules,
)
from video2world_operator.api.constants import (
    CAPTIONS_MISSING,
    CAPTIONS_PREPARED,
    MAX_NAME,
    MAX_PROMPTS,
    MULTIKUEUE,
    QUEUE_MISSING,
    RESERVED_ENV,
    RESULTS_DELETED,
)
from video2world_operator.api.dataset_spec import SOURCES
from video2world_operator.api.experiments import DECIDED, OVERRIDES
from video2world_operator.api.fields import RESOURCE_NAME_EXPECTED, RESOURCE_NAME_PATTERN
from video2world_operator.api.mutability import IMMUTABLE, adjustable, fixed
from video2world_operator.api.train_settings import ALLOWED, SETTINGS

__all__ = [
    "CELRule",
    "actions_rules",
    "change_rules",
    "env_name_rule",
    "lerobot_rules",
    "minimum_rule",
    "name_rule",
    "overrides_rule",
    "path_rule",
    "samples_rules",
    "spec_rules",
]


# --------------------------------------------------------------------- rules of single fields


def name_rule() -> CELRule:
    """Restrict the resource's name, which the names of pods and Services start with."""
    return rule(
        f"size(self.metadata.name) <= {MAX_NAME} && "
        f"self.metadata.name.matches('{RESOURCE_NAME_PATTERN}')",
        f"metadata.name: write {RESOURCE_NAME_EXPECTED}, since pods and Services are named after "
        "it",
    )


def path_rule() -> CELRule:
    """Keep a path inside the volume."""
    return rule(
        "!self.split('/').exists(part, part == '..')",
        "leaves the volume; use a path without ..",
    )


def minimum_rule(low: float, high: float) -> CELRule:
    """Bound a number from below by a fraction, which the schema's own minimum rounds to 0."""
    return rule(f"self >= {low}", f"write a number from {low} to {high:g}")


def env_name_rule() -> CELRule:
    """Refuse environment variables that the operator sets itself."""
    prefixes = [name for name in RESERVED_ENV if name.endswith("_")]
    words = [name for name in RESERVED_ENV if not name.endswith("_")]
    refused = [f"!self.startsWith('{prefix}')" for prefix in prefixes]
    return rule(
        " && ".join([*refused, f"!(self in {words})"]),
        "this variable is set by the operator; remove it",
    )


def samples_rules() -> list[CELRule]:
    """Require distinct outputs, and prompts that fit into an annotation."""
    return [
        rule(
            "self.all(a, !has(a.output) || self.exists_one(b, has(b.output) && "
            "b.output == a.output))",
            "two samples have the same output; rename one",
        ),
        rule(
            "self.map(s, (has(s.prompt) ? size(s.prompt) : 0) + "
            f"(has(s.negativePrompt) ? size(s.negativePrompt) : 0)).sum() <= {MAX_PROMPTS}",
            f"all prompts together have more than {MAX_PROMPTS} characters; use several resources",
        ),
    ]


def lerobot_rules() -> list[CELRule]:
    """Require one place of the dataset, and the fields that belong to it and to its captions."""
    ordered = " && ".join(
        f"(!has(self.{field}) || self.{field}.all(e, !string(e).contains('-') || "
        "int(string(e).split('-')[0]) <= int(string(e).split('-')[1])))"
        for field in ("episodes", "validationEpisodes")
    )
    return [
        rule("has(self.repoID) != has(self.path)", "set exactly one of repoID and path"),
        rule(
            "!has(self.revision) || has(self.repoID)",
            "revision is that of a repository on the Hub; set repoID, or remove it",
        ),
        rule(
            "(has(self.caption) && self.caption == 'File') == has(self.captionFile)",
            "caption: File and captionFile belong together; set both, or none of them",
        ),
        rule(ordered, "the range of episodes ends before it begins; write it as FIRST-LAST"),
    ]


# --------------------------------------------------------------------- overrides


def overrides_rule() -> CELRule:
    """Accept overrides that set a field or a setting of the train command."""
    names = {*OVERRIDES, *SETTINGS} - {*DECIDED}
    texts = {
        name
        for name in names - {*OVERRIDES}
        if SETTINGS[name]["kind"] == "str" and not SETTINGS[name]["choices"]
    }
    unchanged = [f"{name}={value}" for name, values in sorted(ALLOWED.items()) for value in values]
    known = (
        f"o.contains('=') && ({NAME} in {sorted(names - texts)} ? {NOT_EMPTY} : "
        f"{NAME} in {sorted(texts)} || ({NAME} + '=' + {VALUE}.lowerAscii()) in {unchanged})"
    )
    return rule(
        f"self.all(o, {known})",
        "write an override as name=value; docs/reference/training.md lists the names",
    )


# --------------------------------------------------------------------- rules between fields


def spec_rules() -> list[CELRule]:
    """Return the rules between fields of the spec.

    What an experiment or an override sets is checked by the operator only, which resolves them.
    """
    sized = "has(self.model) && has(self.model.size)"
    named = "has(self.training.experiment)"
    written = f"!{named} && (!has(self.training.overrides) || size(self.training.overrides) == 0)"
    sparse = (
        "has(self.training.attentionPattern) && self.training.attentionPattern == 'Sparse' && "
        f"{written}"
    )
    plain = f"{sized} && !{named} && !{overridden('model_parallel.context_parallel_size')}"
    parallel = or_default("contextParallelSize", by_size("context_parallel_size"))
    nodes = or_default("nodes", by_size("nodes"))
    processes = or_default("gpusPerNode", by_size("processes_per_node"))
    dataset_dir = overridden("dataloader_train.dataset.dataset_dir")
    sources = ", ".join(f"has(self.dataset.{name})" for name in SOURCES)
    heads = ", ".join(f"{name} {size.num_heads}" for name, size in SIZES.items())
    dispatched = f"(has(self.managedBy) && self.managedBy == '{MULTIKUEUE}')"
    return [
        rule(
            f"({sized}) || {named}",
            "model.size is missing; use Tiny, 2B or 14B, or set training.experiment",
        ),
        rule(
            f"has(self.dataset) || {dataset_dir}",
            f"dataset is missing; set one of {', '.join(SOURCES)}",
        ),
        rule(
            f"!has(self.dataset) || [{sources}].exists_one(x, x) || "
            f"(![{sources}].exists(x, x) && {dataset_dir})",
            f"set exactly one of {', '.join(SOURCES)}",
        )
        | {"fieldPath": ".dataset"},
        rule(
            "!has(self.dataset) || !has(self.dataset.captions) || !has(self.dataset.prepared)",
            f"dataset.captions: {CAPTIONS_PREPARED}",
        ),
        rule(
            "!has(self.dataset) || !has(self.dataset.lerobot) || has(self.dataset.captions) || "
            "!has(self.dataset.lerobot.caption) || self.dataset.lerobot.caption != 'Endpoint'",
            f"dataset.lerobot.{CAPTIONS_MISSING}",
        ),
        rule(
            f"has(self.training.iterations) || {named} || {overridden('trainer.max_iter')} || "
            f"{overridden('trainer.phases')} || ({PHASED} && has({LAST_PHASE}.iterations))",
            "training.iterations is missing; set the number of steps to train",
        ),
        rule(
            f"!({plain}) || ({nodes} * {processes} % {parallel} == 0 && "
            f"{by_size('num_heads')} % {parallel} == 0)",
            "training.contextParallelSize must divide nodes x gpusPerNode and the attention "
            f"heads ({heads})",
        ),
        rule(
            f"!({sized}) || !{named} || "
            f"self.training.experiment.matches('^({PREFIX})?' + self.model.size.lowerAscii() "
            "+ '_')",
            "model.size contradicts training.experiment; remove model.size or use the other "
            "experiment",
        ),
        rule(
            f"(!({sized}) && !{named}) || ({sized} && self.model.size == 'Tiny') || "
            "!has(self.training.device) || self.training.device != 'CPU'",
            "training.device: CPU can train model.size Tiny only",
        ),
        *min_nodes_rules(
            f"has(self.training.nodes) || ({sized})",
            nodes,
            plain,
            f"{nodes} / k * {processes} % {parallel} == 0",
        ),
        *claim_rules(),
        *phases_rules(),
        rule(
            f"!({sparse}) || ({sized} && self.model.size == 'Tiny') || "
            "((!has(self.model) || !has(self.model.resolution) || "
            "self.model.resolution == '720p') && (!has(self.training.phases) || "
            "self.training.phases.all(p, p.resolution == '720p')))",
            "training.attentionPattern: Sparse weights exist for 720p only; use 720p in "
            "model.resolution or training.phases, or Dense",
        ),
        rule(
            f"!({sparse}) || !has(self.training.attention) || "
            "self.training.attention in ['Auto', 'FlashAttention4']",
            "training.attentionPattern: this training.attention has no Sparse attention; use Auto, "
            "or Dense",
        ),
        *validation_rules(),
        *automatic_interval_rules(),
        *action_rules(),
        rule(
            f"!({written}) || !has(self.model) || !has(self.model.weights) || "
            "(has(self.training.attentionPattern) && self.training.attentionPattern == 'Sparse' ? "
            f"!self.model.weights.matches('{DENSE_WEIGHTS}') : "
            f"!self.model.weights.matches('{SPARSE_WEIGHTS}'))",
            "training.attentionPattern contradicts model.weights, which are published weights of "
            "the other pattern; change one of them",
        ),
        rule(
            "!has(self.storage) || !has(self.storage.accessMode) || "
            "self.storage.accessMode != 'ReadWriteOncePod' || "
            f"!({_shares_volume(sized)})",
            "storage.accessMode: ReadWriteOncePod does not allow several pods (nodes, "
            "dataset.shards, inference.parallelism, or inference.everyCheckpoint during "
            "training); use ReadWriteMany",
        ),
        rule(
            "!has(self.inference) || !has(self.inference.checkpoint) || "
            "!has(self.inference.checkpoints) || size(self.inference.checkpoints) == 0",
            "inference.checkpoint and inference.checkpoints are both set; keep one of them",
        ),
        rule(
            "!has(self.inference) || !has(self.inference.everyCheckpoint) || "
            "!self.inference.everyCheckpoint || "
            "(has(self.inference.samples) && size(self.inference.samples) > 0)",
            "inference.everyCheckpoint: there is nothing to generate; add inference.samples, or "
            "remove it",
        ),
        rule(
            f"!({sized}) || !has(self.inference) || !has(self.inference.gpus) || "
            f"{by_size('num_heads')} % {_ranks_per_branch()} == 0",
            "inference.gpus, half of them if guidance is above 0 and they are even, must divide "
            f"the attention heads ({heads})",
        ),
        rule(
            "!has(self.inference) || !has(self.inference.weights) || "
            "self.inference.weights != 'EMA' || !has(self.training.ema) || self.training.ema",
            "inference.weights: EMA weights are not saved with training.ema: false; use Regular, "
            "or remove training.ema",
        ),
        rule(
            f"!has(self.evaluation) || !has(self.dataset) || {dataset_dir} || "
            f"({' && '.join(map(holds_out, HELD_OUT))})",
            "evaluation: no windows are held out; set validationEpisodeIDs, validationEpisodes, "
            "validationNames or validationPercent in dataset, or remove it",
        ),
        rule(
            f"!has(self.evaluation) || !has(self.evaluation.checkpoints) || {named} || "
            f"!has(self.training.iterations) || {overridden('trainer.max_iter')} || "
            "self.evaluation.checkpoints.all(c, !string(c).matches('^[0-9]+$') || "
            "int(string(c)) <= self.training.iterations)",
            "evaluation.checkpoints: one comes after training.iterations; use an earlier one, or "
            "latest",
        ),
        rule(
            "!has(self.evaluation) || !has(self.evaluation.metrics) || "
            "self.evaluation.metrics.all(a, self.evaluation.metrics.exists_one(b, b == a))",
            "evaluation.metrics: a metric is named twice; keep one",
        ),
        rule(
            f"!{dispatched} || (has(self.scheduling) && has(self.scheduling.queueName))",
            f"scheduling.queueName: {QUEUE_MISSING}",
        ),
        rule(
            f"!{dispatched} || !has(self.storage) || !has(self.storage.retention) || "
            "self.storage.retention != 'Delete'",
            f"storage.retention: {RESULTS_DELETED}",
        ),
    ]


def _ranks_per_branch() -> str:
    """A CEL expression: ``Spec.ranks_per_branch``."""
    gpus, guidance = "self.inference.gpus", "self.inference.guidance"
    guided = f"(!has({guidance}) || {guidance} > 0.0)"
    return f"({guided} && {gpus} % 2 == 0 ? {gpus} / 2 : {gpus})"


def _shares_volume(sized: str) -> str:
    """A CEL expression: ``Spec.pods_sharing_volume`` is above 1."""
    nodes = f"(has(self.training.nodes) ? self.training.nodes : {sized} ? {by_size('nodes')} : 1)"
    several = (
        "size(self.inference.samples) > 1 || (size(self.inference.samples) == 1 && "
        "has(self.inference.checkpoints) && self.inference.checkpoints.exists(c, "
        "string(c) == 'all' || string(c) != string(self.inference.checkpoints[0])))"
    )
    return (
        f"{nodes} > 1 || (has(self.dataset) && has(self.dataset.shards) && "
        "self.dataset.shards > 1) || (has(self.inference) && "
        "((has(self.inference.everyCheckpoint) && self.inference.everyCheckpoint) || "
        "(has(self.inference.parallelism) && self.inference.parallelism > 1 && "
        f"has(self.inference.samples) && ({several}))))"
    )


# --------------------------------------------------------------------- changes


def change_rules() -> list[CELRule]:
    """Return the rules about changes once work has begun, from the table of mutability."""
    started = "has(oldSelf.status) && has(oldSelf.status.startTime)"
    of_spec, of_training = fixed()
    remedy = "create another resource, which reuses what is complete on the volume"
    rules = [
        rule(
            _unchanged(f"spec.{name}"),
            f"spec.{name} cannot be changed: delete this resource and create another",
        )
        for name in IMMUTABLE
    ]
    rules += [
        rule(
            f"!({started}) || {_unchanged(f'spec.{name}')}",
            f"spec.{name} cannot be changed once work has begun: {remedy}",
        )
        for name in of_spec
    ]
    same = [_unchanged(f"spec.training.{name}") for name in of_training]
    rules.append(
        rule(
            f"!({started}) || ({' && '.join(same)})",
            f"of spec.training only {', '.join(adjustable())} can be changed once work has begun: "
            f"{remedy}",
        )
    )
    rules.append(
        rule(
            f"!({started}) || self.spec.suspend || oldSelf.spec.suspend || "
            f"{_unchanged('spec.scheduling')}",
            "spec.scheduling can be changed only while spec.suspend is true",
        )
    )
    return rules


def _unchanged(path: str) -> str:
    """A CEL expression: the field is as it was.

    With ``.?`` it would be shorter, but the API server does not bound the cost of that.
    """
    new, old = f"self.{path}", f"oldSelf.{path}"
    return f"(has({new}) == has({old}) && (!has({new}) || {new} == {old}))"
