"""The plan: ordered stages, manifests a restricted cluster admits, hashes that follow inputs."""

import json
from importlib import import_module
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from repository import ROOT
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.validation import load_resource, parse
from video2world_operator.plan.manifests import CONFIG_DIR, VOLUME_DIR, owned
from video2world_operator.plan.plan import make_plan, to_yaml
from video2world_trainer import inference
from video2world_trainer.training.config_parser import read_config

SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference"]


def plan(name="run", **spec):
    base = {
        "model": {"size": "Tiny"},
        "dataset": {"agibot": {"path": "datasets/agibot", "validationEpisodeIDs": [685393]}},
        "training": {"iterations": 1000, "nodes": 2},
        "inference": {"samples": [{"input": "val/videos/a.mp4"}]},
    }
    merged = {k: base.get(k, {}) | spec.get(k, {}) for k in {**base, **spec}}
    return make_plan(
        parse(
            {
                "apiVersion": "video2world.dev/v1alpha1",
                "kind": "Video2WorldPostTrain",
                "metadata": {"name": name},
                "spec": merged,
            }
        )
    )


def hashes(**spec):
    return {stage.name: stage.inputs_hash for stage in plan(**spec).stages}


def pod(stage):
    return stage.job["spec"]["template"]["spec"]


def env(stage):
    return {v["name"]: v.get("value") for v in pod(stage)["containers"][0]["env"]}


def changed(**spec):
    before, after = hashes(), hashes(**spec)
    return [name for name in before if before[name] != after.get(name)]


def test_stages_in_order():
    assert [s.name for s in plan().stages] == STAGES


def test_without_samples_no_inference():
    made = plan(inference={"samples": []})
    assert [s.name for s in made.stages] == STAGES[:-1]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_rendering_is_deterministic_and_reads_back(path):
    text = to_yaml(make_plan(load_resource(path)))
    assert text == to_yaml(make_plan(load_resource(path)))
    documents = list(yaml.safe_load_all(text))
    made = make_plan(load_resource(path))
    assert documents == [*made.shared, *(m for s in made.stages for m in s.manifests)]
    assert "&id" not in text


def test_dataset_command_of_the_guide():
    (stage,) = [
        s for s in plan(model={"size": "2B"}, training={"nodes": 1}).stages if s.name == "dataset"
    ]
    assert list(stage.argv) == [
        "python",
        "-m",
        "video2world_preprocess.agibot",
        "--task_ids",
        "327",
        "--data_dir",
        "datasets/agibot",
        "--repo_id",
        "agibot-world/AgiBotWorld-Alpha",
        "--camera",
        "head_center_fisheye_color",
        "--val_episode_ids",
        "685393",
        "--window-size",
        "5",
        "--min-last-window",
        "7.5",
        "--min_frames",
        "94",
        "--dataset_dir",
        "datasets/agibot_head_center_fisheye_color",
        "--prepare",
        "--local",
    ]


def test_dataset_commands_of_other_sources():
    def flags(**dataset):
        argv = plan(dataset={"agibot": None} | dataset).stage("dataset").argv
        return argv[2], list(argv[3:])

    cut = ["--window-size", "4", "--min-last-window", "6"]
    rest = ["--min_frames", "18"]
    lerobot = {
        "repoID": "team/cups",
        "revision": "v3.0",
        "subfolder": "success/",
        "camera": "top",
        "episodes": ["0-9", 12],
        "validationEpisodes": [3],
        "validationPercent": 5,
        "windowSeconds": 4,
        "caption": "File",
        "captionFile": "words.csv",
    }
    module, found = flags(lerobot=lerobot, shards=2)
    assert module == "video2world_preprocess.lerobot"
    source = "--repo_id team/cups --revision v3.0 --subfolder success --camera top --caption File"
    words = "--caption_file words.csv --episode_ids 0-9 12 --val_episode_ids 3 --val_percent 5"
    folder = ["--dataset_dir", "datasets/run"]
    assert found == [*source.split(), *words.split(), *cut, *folder, *rest, "--shards=2"]
    short = {"path": "mine/", "windowSeconds": 4, "name": "x"}
    folder = ["--dataset_dir", "datasets/x"]
    assert flags(lerobot=short)[1] == [
        *("--data_dir", "mine", "--caption", "Task"),
        *cut,
        *folder,
        *rest,
    ]
    _, beta = flags(agibot={"release": "Beta", "taskIDs": [363], "camera": "head_color"})
    names = dict(pairwise(beta))
    assert names["--repo_id"] == "agibot-world/AgiBotWorld-Beta"
    assert names["--data_dir"] == "datasets/agibot_beta"
    assert names["--dataset_dir"] == "datasets/agibot_beta_head_color"
    mirrored = flags(agibot={"release": "Beta", "repoID": "mirror/beta"})[1]
    assert "mirror/beta" in mirrored


LEROBOT = {"agibot": None, "lerobot": {"path": "mine", "validationEpisodes": [9]}}
JOINTS = {"actions": {"columns": ["action", "observation.state"], "names": ["pan", "lift"]}}
CONDITIONED = {"training": {"nodes": 1, "conditioning": {"actions": {}}}}


def flag(argv, name):
    """The values after the flag ``name``, up to the next flag."""
    rest = list(argv)[argv.index(name) + 1 :]
    return rest[: next((n for n, one in enumerate(rest) if one.startswith("--")), len(rest))]


def test_actions_reach_the_dataset_command():
    made = plan(dataset=LEROBOT | JOINTS)
    argv = made.stage("dataset").argv
    assert flag(argv, "--actions") == ["action", "observation.state"]
    assert flag(argv, "--action_names") == ["pan", "lift"]
    assert not {"--action_representation", "--action_normalization"} & {*argv}
    assert not any("conditioning" in one for one in made.stage("train").argv)
    poses = {"columns": ["p"], "representation": "RelativePose", "normalization": "Published"}
    argv = plan(dataset=LEROBOT | {"actions": poses}).stage("dataset").argv
    assert flag(argv, "--action_representation") == ["relative_pose"]
    assert flag(argv, "--action_normalization") == ["published"]
    assert "--action_names" not in argv
    argv = plan(dataset={"actions": {"columns": ["state/joint/position"]}}).stage("dataset").argv
    assert flag(argv, "--actions") == ["state/joint/position"]
    assert "--action_names" not in plan(dataset=LEROBOT).stage("dataset").argv


def test_actions_of_bridge_and_of_a_prepared_dataset():
    bridge = {"agibot": None, "bridge": {"path": "datasets/bridge/", "cameraID": 1}}
    argv = plan(dataset=bridge, **CONDITIONED, evaluation={}).stage("dataset").argv
    assert argv[2] == "video2world_preprocess.bridge"
    expected = "--data_dir datasets/bridge --camera_id 1 --dataset_dir datasets/run"
    assert list(argv[3:]) == [*expected.split(), "--min_frames", "17", "--require_val"]
    ready = {"agibot": None, "prepared": {"path": "datasets/mine"}}
    assert "--require_actions" in plan(dataset=ready, **CONDITIONED).stage("dataset").argv
    assert "--require_actions" not in plan(dataset=ready).stage("dataset").argv


@pytest.mark.parametrize("name", ["lerobot-2b-actions", "bridge-2b-actions"])
def test_the_workers_understand_the_flags_about_actions(name):
    made = make_plan(load_resource(ROOT / f"manifests/samples/{name}.yaml"))
    for stage in made.stages:
        _, _, module, *flags = stage.argv
        if stage.name == "train":
            config = read_config([one for one in flags if "=" in one])
            assert config.action_conditioning in ("per_frame", "per_clip")
            continue
        split = flags.index("--") if "--" in flags else len(flags)
        import_module(module).parser().parse_args(flags[:split])
        inference.parser().parse_args(flags[split + 1 :])


def test_conditioning_per_frame_keeps_the_model_and_its_text():
    one_node = {"training": {"nodes": 1}}
    plain = plan(dataset=LEROBOT | JOINTS, **one_node)
    made = plan(dataset=LEROBOT | JOINTS, **CONDITIONED)
    assert [s.name for s in made.stages] == STAGES
    own = plan(model={"weights": "w.pt"}, dataset=LEROBOT | JOINTS, **CONDITIONED)
    assert flag(own.stage("download").argv, "--action_conditioning") == ["per_frame"]
    added = {*made.stage("train").argv} - {*plain.stage("train").argv}
    assert added == {"model.action_conditioning=per_frame"}
    for stage in STAGES[:-2]:
        assert made.stage(stage).argv == plain.stage(stage).argv
    assert made.stage("train").inputs_hash != plain.stage("train").inputs_hash


def test_the_published_network_has_its_own_clips_weights_and_no_text():
    made = plan(
        model={"size": "2B"},
        dataset={"agibot": None, "bridge": {"path": "datasets/bridge"}},
        training={
            "iterations": 10,
            "nodes": 1,
            "conditioning": {"actions": {"variant": "PerClip"}},
        },
        inference={"samples": [{"input": "val/videos/a.mp4", "actions": "moves/left.csv"}]},
        evaluation={"failWhenActionsIgnored": True},
    )
    assert [s.name for s in made.stages] == [
        "download",
        "dataset",
        "latents",
        "train",
        "inference",
        "evaluation",
    ]
    folder = "checkpoints/nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"
    vae = "checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/tokenizer"
    download = made.stage("download")
    assert flag(download.argv, "--model_types") == ["sample_action_conditioned"]
    assert download.outputs == (vae, folder)
    assert flag(made.stage("dataset").argv, "--min_frames") == ["13"]
    latents = made.stage("latents").argv
    assert flag(latents, "--num_frames") == ["13"]
    assert flag(latents, "--video_size") == ["480", "640"]
    assert {
        "model.action_conditioning=per_clip",
        f"model.config.model_manager_config.dit_path={folder}/model-480p-4fps.pt",
        "dataloader_train.dataset.num_frames=13",
        "dataloader_train.dataset.video_size=[480,640]",
    } < {*made.stage("train").argv}
    for stage in ("inference", "evaluation"):
        argv = made.stage(stage).argv
        assert flag(argv, "--guidance") == ["0"]
        assert flag(argv, "--vae_path") == [vae]
        assert not {"--fps", "--resolution", "--text_encoder_path"} & {*argv}
    assert "--fail_when_actions_ignored" in made.stage("evaluation").argv
    assert flag(made.stage("evaluation").argv, "--base_weights")[0].startswith(folder)
    (one,) = json.loads(
        made.stage("inference").job["spec"]["template"]["metadata"]["annotations"][
            "video2world.dev/samples"
        ]
    )
    assert one["actions"] == "moves/left.csv"


def test_train_group():
    service, job = plan().stage("train").manifests
    assert (service["metadata"]["name"], job["metadata"]["name"]) == ("run-train", "run-train-1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["subdomain"] == "run-train"
    values = env(plan().stage("train"))
    assert values["PET_RDZV_ENDPOINT"] == "run-train-1-0.run-train:29500"
    assert (values["PET_NNODES"], values["PET_NPROC_PER_NODE"]) == ("2", "1")
    assert (values["MASTER_ADDR"], values["MASTER_PORT"]) == ("run-train-1-0.run-train", "29501")
    command = spec["template"]["spec"]["containers"][0]["command"]
    assert command[2:5] == ["video2world_trainer.launch", "-m", "video2world_trainer.train"]


def test_gradient_accumulation_reaches_the_train_command_if_there_is_any():
    def settings(**training):
        return [one for one in plan(training=training).stage("train").argv if "grad_accum" in one]

    assert settings() == settings(gradientAccumulation=1) == []
    assert settings(gradientAccumulation=4) == ["trainer.grad_accum_iter=4"]
    assert settings(overrides=["trainer.grad_accum_iter=2"]) == ["trainer.grad_accum_iter=2"]


def test_attempts_differ_in_name_and_rendezvous_only():
    first, third = (json.dumps(plan().manifests("train", n)) for n in (1, 3))
    assert "run-train-3-0.run-train:29500" in third
    renamed = first.replace("run-train-1", "run-train-3").replace('attempt": "1"', 'attempt": "3"')
    renamed = renamed.replace('"V2W_ATTEMPT", "value": "1"', '"V2W_ATTEMPT", "value": "3"')
    assert renamed == third
    assert plan().stage("train").manifests == plan().manifests("train", 1)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_pods_fit_the_restricted_profile(path):
    for stage in make_plan(load_resource(path)).stages:
        spec = pod(stage)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        (container,) = spec["containers"]
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert all("hostPath" not in volume for volume in spec["volumes"])
        mounts = {m["name"] for m in container["volumeMounts"]}
        assert mounts == {v["name"] for v in spec["volumes"]}


def test_every_worker_gets_its_working_directory_and_hash():
    for stage in plan().stages:
        values = env(stage)
        assert values["V2W_STAGE"] == stage.name
        assert values["V2W_RESOURCE"] == "run"
        assert values["V2W_INPUTS_HASH"] == stage.inputs_hash
        assert values["V2W_CONFIG_DIR"] == CONFIG_DIR
        (container,) = pod(stage)["containers"]
        assert container["workingDir"] == VOLUME_DIR
        assert all(isinstance(word, str) for word in container["command"])
        assert container["command"][0] == "python"  # never a shell
        assert stage.job["metadata"]["annotations"]["video2world.dev/inputs-hash"] == (
            stage.inputs_hash
        )


def test_user_errors_are_not_retried():
    for stage in plan().stages:
        rule = stage.job["spec"]["podFailurePolicy"]["rules"][0]
        assert rule["action"] == "FailJob"
        assert rule["onExitCodes"]["values"] == [2]
        assert rule["onExitCodes"]["containerName"] == pod(stage)["containers"][0]["name"]
        assert pod(stage)["restartPolicy"] == "Never"  # the policy requires it


@pytest.mark.parametrize("source", [{"agibot": {}}, {"lerobot": {"repoID": "a/b"}}])
def test_the_token_is_a_reference_and_only_in_stages_that_need_it(source):
    token = {"huggingFaceTokenSecret": {"name": "hf", "key": "t"}}
    made = plan(credentials=token, dataset={"agibot": None} | source)
    holders = []
    for stage in made.stages:
        for variable in pod(stage)["containers"][0]["env"]:
            if variable["name"] == "HF_TOKEN":
                holders.append(stage.name)
                assert variable["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "t"}}
                assert "value" not in variable
    assert holders == ["download", "dataset"]


@pytest.mark.parametrize(
    "dataset",
    [
        {"videos": {"path": "v"}},
        {"prepared": {"path": "p"}},
        {"agibot": {"path": "a"}},
        {"lerobot": {"path": "l"}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_stage_that_downloads_nothing_gets_no_token(dataset):
    made = plan(
        credentials={"huggingFaceTokenSecret": {"name": "hf"}}, dataset={"agibot": None} | dataset
    )
    holders = [
        stage.name
        for stage in made.stages
        for variable in pod(stage)["containers"][0]["env"]
        if variable["name"] == "HF_TOKEN"
    ]
    assert holders == ["download"]


CAPTIONS = {"endpoint": "http://vllm.models:8000/v1", "model": "Qwen/Qwen3-VL-8B-Instruct"}


def captioned(**changes):
    return plan(dataset={"captions": CAPTIONS | changes})


def test_captions_are_made_between_dataset_and_embeddings():
    token = {"name": "vllm", "key": "api-key"}
    made = captioned(tokenSecret=token, prompt="Say what moves.", framesPerSecond=4)
    assert [s.name for s in made.stages] == [*STAGES[:2], "captions", *STAGES[2:]]
    stage = made.stage("captions")
    assert list(stage.argv[2:11]) == [
        "video2world_preprocess.captions",
        "--dataset_path",
        f"{made.resource.dataset_dir}/train",
        f"{made.resource.dataset_dir}/val",
        "--endpoint=http://vllm.models:8000/v1",
        "--model=Qwen/Qwen3-VL-8B-Instruct",
        "--prompt=Say what moves.",
        "--frames_per_second",
        "4",
    ]
    assert "--captioned_by=Qwen/Qwen3-VL-8B-Instruct" in made.stage("embeddings").argv
    holders = {
        s.name: variable["valueFrom"]
        for s in made.stages
        for variable in pod(s)["containers"][0]["env"]
        if variable["name"] == "CAPTIONS_TOKEN"
    }
    assert holders == {"captions": {"secretKeyRef": token}}
    large = plan(model={"size": "2B"}, training={"nodes": 1}, dataset={"captions": CAPTIONS})
    assert pod(large.stage("captions"))["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "8Gi"}
    }


def test_other_captions_are_made_and_embedded_but_not_another_address():
    before = {stage.name: stage.inputs_hash for stage in captioned().stages}

    def changed_stages(**changes):
        after = {stage.name: stage.inputs_hash for stage in captioned(**changes).stages}
        return [name for name in before if before[name] != after[name]]

    later = ["captions", "embeddings", "train", "inference"]
    assert changed_stages(prompt="Say what moves.") == changed_stages(model="x") == later
    assert changed_stages(maxFrames=8) == later
    assert changed_stages(endpoint="https://other/v1", parallelRequests=1, timeoutSeconds=9) == []
    assert changed_stages(tokenSecret={"name": "a"}, maxFailedPercent=50) == []
    without = hashes()
    assert [n for n in without if without[n] != before[n]] == ["embeddings", "train", "inference"]


def test_videos_need_no_captions_if_a_model_writes_them():
    def argv(**more):
        made = plan(dataset={"agibot": None, "videos": {"path": "v"}, **more})
        return made.stage("dataset").argv

    assert argv(captions=CAPTIONS) == (*argv(), "--captions_optional")


def test_gpus_are_held_by_the_stages_that_use_them():
    made = make_plan(load_resource(next(p for p in SAMPLES if p.stem == "agibot-14b")))
    held = {
        s.name: pod(s)["containers"][0]["resources"].get("limits", {}).get("nvidia.com/gpu")
        for s in made.stages
    }
    assert held == {
        "download": None,
        "dataset": None,
        "embeddings": "1",
        "latents": "1",
        "train": "8",
        "inference": "8",
    }
    assert "nvidia.com/gpu" not in to_yaml(plan())
    assert all(env(s)["CUDA_VISIBLE_DEVICES"] == "" for s in plan().stages)


CLAIM = {"name": "gpus", "resourceClaimTemplateName": "eight"}


def test_claims_replace_the_limit_of_gpus():
    claims = [CLAIM, {"name": "nic", "resourceClaimTemplateName": "one-nic", "request": "port"}]
    made = plan(
        model={"size": "2B"},
        training={"resourceClaims": claims, "interconnect": "RoCE"},
        stages={"latents": {"resourceClaims": [CLAIM]}},
        scheduling={"queueName": "team"},
    )
    train, latents, embeddings = (pod(made.stage(n)) for n in ("train", "latents", "embeddings"))
    assert train["resourceClaims"] == [
        CLAIM,
        {"name": "nic", "resourceClaimTemplateName": "one-nic"},
    ]
    assert train["containers"][0]["resources"] == {
        "requests": {"cpu": "64", "memory": "768Gi"},
        "claims": [{"name": "gpus"}, {"name": "nic", "request": "port"}],
    }
    assert (env(made.stage("train"))["PET_NPROC_PER_NODE"]) == "8"
    assert env(made.stage("train"))["NCCL_NET"] == "IB"
    assert latents["resourceClaims"] == [CLAIM]
    assert "limits" not in latents["containers"][0]["resources"]
    assert embeddings["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    queued = [s.name for s in made.stages if "kueue" in str(s.job["metadata"]["labels"])]
    assert queued == ["embeddings", "latents", "train", "inference"]


def test_claims_change_pods_but_no_result():
    def annotations(stage="train", **spec):
        return plan(model={"size": "2B"}, **spec).stage(stage).job["metadata"]["annotations"]

    before, after = annotations(), annotations(training={"resourceClaims": [CLAIM]})
    assert before["video2world.dev/inputs-hash"] == after["video2world.dev/inputs-hash"]
    assert before["video2world.dev/pods-hash"] != after["video2world.dev/pods-hash"]
    assert annotations("latents") == annotations("latents", training={"resourceClaims": [CLAIM]})
    assert annotations() == annotations(training={"resourceClaims": []})


def test_a_pod_template_adds_claims_to_those_of_the_spec():
    channel = {"name": "channel", "resourceClaimTemplateName": "imex"}
    patch = {
        "resourceClaims": [channel],
        "containers": [{"name": "train", "resources": {"claims": [{"name": "channel"}]}}],
    }
    stages = {"train": {"podTemplate": {"spec": patch}}}
    claims = {"resourceClaims": [CLAIM]}
    made = pod(plan(model={"size": "2B"}, training=claims, stages=stages).stage("train"))
    assert made["resourceClaims"] == [CLAIM, channel]
    assert made["containers"][0]["resources"]["claims"] == [{"name": "gpus"}, {"name": "channel"}]
    limited = pod(plan(model={"size": "2B"}, stages=stages).stage("train"))
    assert limited["resourceClaims"] == [channel]
    assert limited["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_a_stage_can_give_up_its_gpu():
    made = plan(
        model={"size": "2B"},
        training={"nodes": 1},
        stages={"embeddings": {"resources": {"limits": {"nvidia.com/gpu": 0, "cpu": 4}}}},
    )
    limits = pod(made.stage("embeddings"))["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "4"}


def test_the_download_checks_own_weights():
    assert "--weights" not in plan().stage("download").argv
    dense = plan(model={"weights": "a/w.pt"}).stage("download").argv
    assert dense[-2:] == ("--weights", "a/w.pt")
    sparse = {"iterations": 9, "attentionPattern": "Sparse"}
    found = plan(model={"weights": "a/w.pt"}, training=sparse).stage("download").argv
    assert found == (*dense, "--attention_pattern", "sparse")


def test_samples_on_several_gpus():
    one, two = (
        plan(model={"size": "2B"}, training={"nodes": 1}, inference=inference | {"guidance": 7})
        for inference in ({}, {"gpus": 2, "offload": True})
    )
    (container,) = pod(two.stage("inference"))["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "10", "memory": "160Gi"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    assert list(container["command"]) == [
        *(argv := list(one.stage("inference").argv))[: (at := argv.index("--vae_path"))],
        "--num_gpus=2",
        "--offload",
        *argv[at:],
    ]
    assert pod(two.stage("train")) == pod(one.stage("train"))
    (job,) = two.sampling(500)  # samples of checkpoints are made alike
    (sampler,) = job["spec"]["template"]["spec"]["containers"]
    assert sampler["resources"] == container["resources"]
    assert {"--num_gpus=2", "--offload"} < set(sampler["command"])


def test_more_gpus_make_no_sample_again_but_replace_pods_that_wait():
    def annotations(**inference):
        return plan(inference=inference).stage("inference").job["metadata"]["annotations"]

    before, after = annotations(), annotations(gpus=2)
    assert before["video2world.dev/inputs-hash"] == after["video2world.dev/inputs-hash"]
    assert before["video2world.dev/pods-hash"] != after["video2world.dev/pods-hash"]
    assert before["video2world.dev/pods-hash"] == annotations(gpus=1)["video2world.dev/pods-hash"]
    one, two = plan().sampling(5), plan(inference={"gpus": 2, "offload": True}).sampling(5)
    hashes = [
        job["metadata"]["annotations"]["video2world.dev/inputs-hash"] for (job,) in (one, two)
    ]
    assert hashes[0] == hashes[1]


def test_settings_of_single_samples():
    sample = {"input": "a.mp4", "seed": 5, "negativePrompt": "$(id) blurry"}
    made = plan(inference={"samples": [sample], "framesFrom": "Last"}).stage("inference")
    text = made.job["spec"]["template"]["metadata"]["annotations"]["video2world.dev/samples"]
    (entry,) = json.loads(text)
    assert (entry["seed"], entry["negative_prompt"]) == (5, "$(id) blurry")
    assert made.argv[-2:] == ("--frames", "last")
    assert changed(inference={"framesFrom": "Last"}) == ["inference"]


def test_samples_file():
    second = {"input": "x.mp4", "prompt": "é", "output": "y.mp4"}
    made = plan(inference={"samples": [{"input": "val/videos/a.mp4"}, second]})
    inference = made.stage("inference")
    given = inference.job["spec"]["template"]["metadata"]["annotations"]
    (volume,) = [v for v in pod(inference)["volumes"] if v["name"] == "config"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["path"] == "samples.json"
    name = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    assert json.loads(given[name]) == [
        {
            "input_video": "datasets/agibot_head_center_fisheye_color/val/videos/a.mp4",
            "prompt": "",
            "output_video": "results/run/sample-0.mp4",
        },
        {"input_video": "x.mp4", "prompt": "é", "output_video": "results/run/y.mp4"},
    ]
    assert made.stage("inference").outputs == ("results/run",)


@pytest.mark.parametrize(
    ("given", "named", "by_checkpoint"),
    [
        ({}, ["latest"], False),
        ({"checkpoint": "latest"}, ["latest"], False),
        ({"checkpoint": "1000"}, ["1000"], False),
        ({"checkpoint": "mine/w.pt"}, ["mine/w.pt"], False),
        ({"checkpoints": [1000]}, ["1000"], False),
        ({"checkpoints": ["latest", 500, "mine/w.pt"]}, ["latest", "500", "mine/w.pt"], True),
        ({"checkpoints": ["all"]}, ["all"], True),
        ({"everyCheckpoint": True}, ["latest"], True),
    ],
)
def test_checkpoints_for_inference(given, named, by_checkpoint):
    argv = plan(inference=given).stage("inference").argv
    start = argv.index("--checkpoints") + 1
    assert list(argv[start : start + len(named)]) == named
    assert ("--by_checkpoint" in argv) == by_checkpoint
    assert argv[argv.index("--run_folder") + 1] == (
        "checkpoints/posttraining/video2world/run/checkpoints"
    )
    assert "--load_ema" not in argv
    assert "--load_ema" in plan(inference=given | {"weights": "EMA"}).stage("inference").argv
    assert "--approximate" not in argv
    fast = plan(inference=given | {"mode": "Approximate"}).stage("inference").argv
    assert fast.index("--approximate") > fast.index("--")


def test_evaluation_is_a_stage_only_where_it_is_asked_for():
    given = {"samples": 4, "metrics": ["SSIM", "LPIPS"], "checkpoints": ["all", 500]}
    made = plan(evaluation=given | {"lpipsWeights": "w.pth"}, inference={"weights": "EMA"})
    stage = made.stage("evaluation")
    assert [s.name for s in made.stages] == [*STAGES, "evaluation"]
    argv = list(stage.argv)
    assert argv[:3] == ["python", "-m", "video2world_trainer.evaluate"]
    for flag, *values in (
        ("--checkpoints", "all", "500"),
        ("--dataset_dir", "datasets/agibot_head_center_fisheye_color"),
        ("--samples", "4"),
        ("--metrics", "ssim", "lpips"),
        ("--lpips_weights", "w.pth"),
        ("--save_dir", "results/run/evaluation"),
    ):
        start = argv.index(flag) + 1
        assert argv[start : start + len(values)] == values
    assert "--base_weights" not in argv  # Tiny starts from its seed
    generating = argv[argv.index("--") :]
    assert "--load_ema" in generating
    assert generating == list(made.stage("inference").argv)[-len(generating) :]
    assert stage.outputs == ("results/run/evaluation/evaluation.json",)
    assert "config" not in [volume["name"] for volume in pod(stage)["volumes"]]
    assert pod(stage)["containers"][0]["image"] == made.resource.spec.images.trainer
    real = plan(evaluation={}, model={"size": "2B"}).stage("evaluation")
    assert real.argv[real.argv.index("--base_weights") + 1] == (
        "checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/model-720p-16fps.pt"
    )
    assert real.job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {
        "nvidia.com/gpu": "1"
    }
    without = {s.name: s.inputs_hash for s in plan(inference={"weights": "EMA"}).stages}
    assert without.items() <= {s.name: s.inputs_hash for s in made.stages}.items()


def test_samples_are_divided_between_at_most_as_many_pods():
    two = [{"input": "a.mp4"}, {"input": "b.mp4"}]
    for fields, pods in (
        ({"parallelism": 8}, 2),
        ({"parallelism": 8, "checkpoints": [1, 2, 3]}, 6),
        ({"parallelism": 8, "checkpoints": ["all"]}, 8),
        ({"parallelism": 2, "checkpoints": [1, 2, 3]}, 2),
    ):
        stage = plan(inference={"samples": two} | fields).stage("inference")
        spec = stage.job["spec"]
        assert (spec["completionMode"], spec["completions"]) == ("Indexed", pods)
        assert spec["parallelism"] == pods
        assert f"--shards={pods}" in stage.argv
    assert changed(inference={"parallelism": 8}) == []  # how the work is divided does not matter
    alone = plan(inference={"samples": two}).stage("inference")
    assert "completionMode" not in alone.job["spec"]
    one_node = {"nodes": 1}
    claim = plan(inference={"samples": two, "parallelism": 2}, training=one_node).shared[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    claim = plan(inference={"everyCheckpoint": True}, training=one_node).shared[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # sampling runs during training
    assert plan(training=one_node).shared[0]["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_sampling_job_of_one_checkpoint_during_training():
    patch = {
        "inference": {
            "podTemplate": {"spec": {"containers": [{"name": "inference", "tty": True}]}},
            "env": [{"name": "A", "value": "b"}],
        }
    }
    made = plan(model={"size": "2B"}, inference={"everyCheckpoint": True}, stages=patch)
    (job,) = made.sampling(500)
    assert job["metadata"]["name"] == "run-samples-500"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["video2world.dev/stage"] == "samples"
    assert labels["video2world.dev/attempt"] == "500"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    assert command[command.index("--checkpoints") + 1] == "500"
    assert "--pass_over_missing" in command
    assert (container["name"], container["tty"]) == ("inference", True)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    given = {v["name"]: v.get("value") for v in container["env"]}
    assert (given["V2W_STAGE"], given["A"]) == ("samples", "b")
    codes = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["containerName"] == "inference"

    def hashed(iteration, **spec):
        (job,) = plan(model={"size": "2B"}, **spec).sampling(iteration)
        return job["metadata"]["annotations"]["video2world.dev/inputs-hash"]

    on = {"everyCheckpoint": True}
    assert hashed(500, inference=on) != hashed(1000, inference=on)
    assert hashed(500, inference=on) == hashed(500, inference=on, training={"iterations": 2000})
    assert hashed(500, inference=on) != hashed(500, inference=on, training={"seed": 5})


def test_claim():
    (claim,) = [m for m in plan().shared if m["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # two nodes share it
    mine = plan(storage={"claimName": "mine", "subPath": "a/b"})
    assert mine.shared == ()
    spec = pod(mine.stages[0])
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mine"}
    assert spec["containers"][0]["volumeMounts"][0]["subPath"] == "a/b"


def test_shards_are_an_indexed_job_with_the_same_hash():
    data = {"shards": 4}
    made = plan(dataset=data, training={"nodes": 1}).stage("dataset").job["spec"]
    given = {name: made.get(name) for name in ("completionMode", "completions", "parallelism")}
    assert given == {"completionMode": "Indexed", "completions": 4, "parallelism": 4}
    assert made["backoffLimitPerIndex"] == 3
    assert "--shards=4" in plan(dataset=data).stage("dataset").argv
    assert "--shards=4" not in " ".join(plan().stage("dataset").argv)
    assert "completionMode" not in plan().stage("dataset").job["spec"]
    assert env(plan(model={"size": "2B"}).stage("dataset"))["V2W_WORKERS"] == "4"
    resources = {"dataset": {"resources": {"requests": {"cpu": "2500m"}}}}
    assert env(plan(stages=resources).stage("dataset"))["V2W_WORKERS"] == "2"
    assert changed(dataset=data) == []  # how the work is divided does not matter
    claim = plan(dataset=data, training={"nodes": 1}).shared[0]["spec"]
    assert claim["accessModes"] == ["ReadWriteMany"]


def test_queue_label_is_on_one_level_only():
    made = plan(scheduling={"queueName": "q"})
    for stage in made.stages:
        queued = stage.job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        assert queued == ("q" if stage.name == "train" else None)
        template = stage.job["spec"]["template"]["metadata"]["labels"]
        assert "kueue.x-k8s.io/queue-name" not in template


def test_pods_that_kueue_stops_are_no_failure_of_their_job():
    """A group that crashes fails its Job at once, and so does a group that no queue stops."""
    queued = plan(model={"size": "2B"}, scheduling={"queueName": "q"})
    spec = queued.stage("train").job["spec"]
    assert spec["backoffLimit"] == 2**31 - 1
    assert spec["podFailurePolicy"]["rules"][-1] == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "NotIn", "values": [137, 143]},
    }
    spec = queued.stage("embeddings").job["spec"]
    assert spec["podFailurePolicy"]["rules"][-1] == {
        "action": "Ignore",
        "onExitCodes": {"containerName": "embeddings", "operator": "In", "values": [143]},
    }
    spec = plan(model={"size": "2B"}).stage("train").job["spec"]
    assert (spec["backoffLimit"], len(spec["podFailurePolicy"]["rules"])) == (0, 2)


def test_stage_settings_and_patch():
    patch = {
        "spec": {
            "runtimeClassName": "nvidia",
            "containers": [{"name": "train", "tty": True}],
            "volumes": [
                {"name": "shm", "emptyDir": {"sizeLimit": "2Gi"}},
                {"name": "extra", "emptyDir": {}},
            ],
            "terminationGracePeriodSeconds": None,
        }
    }
    made = plan(
        stages={
            "train": {
                "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                "nodeSelector": {"gpu": "h100"},
                "image": "mine:1",
                "podTemplate": patch,
            }
        }
    )
    spec = pod(made.stage("train"))
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert "terminationGracePeriodSeconds" not in spec
    (container,) = spec["containers"]
    assert (container["tty"], container["image"]) == (True, "mine:1")
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
    shm = next(v for v in spec["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert [v["name"] for v in spec["volumes"]] == ["data", "shm", "tmp", "extra"]
    assert "tty" not in pod(made.stage("latents"))["containers"][0]


@pytest.mark.parametrize(
    ("spec", "stages"),
    [
        ({"training": {"iterations": 2000}}, ["train", "inference"]),
        ({"training": {"checkpoint": {"everyIterations": 7, "keep": 1}}}, []),
        ({"training": {"maxRestarts": 1}}, []),
        ({"training": {"learningRate": 1e-4}}, ["train", "inference"]),
        ({"training": {"clipsPerWindow": 2}}, ["latents", "train", "inference"]),
        ({"inference": {"guidance": 3}}, ["inference"]),
        ({"inference": {"samples": [{"input": "val/videos/b.mp4"}]}}, ["inference"]),
        ({"model": {"geometry": "Stretch"}}, ["latents", "train", "inference"]),
        ({"model": {"size": "2B"}, "training": {"nodes": 1}}, STAGES),
        ({"dataset": {"agibot": {"windowSeconds": 4}}}, STAGES[1:]),
        ({"storage": {"size": "9Gi"}}, []),
        ({"suspend": True}, []),
        ({"images": {"trainer": "x:2"}}, []),
    ],
)
def test_a_change_runs_again_only_what_depends_on_it(spec, stages):
    if "suspend" in spec:
        base = plan().resource.model_dump(by_alias=True, exclude_none=True)
        base["spec"]["suspend"] = True
        after = {s.name: s.inputs_hash for s in make_plan(parse(base)).stages}
        assert after == hashes()
    else:
        assert changed(**spec) == stages


def test_another_resource_name_does_not_repeat_the_preparation():
    a, b = plan("one"), plan("two")
    same = [
        x.name for x, y in zip(a.stages, b.stages, strict=True) if x.inputs_hash == y.inputs_hash
    ]
    assert same == ["download", "dataset", "embeddings", "latents"]


def test_a_longer_run_resumes_from_the_same_checkpoints():
    def run_hash(**training):
        return env(plan(training=training).stage("train"))["V2W_RUN_HASH"]

    assert run_hash() == run_hash(iterations=9000) == run_hash(checkpoint={"keep": 9})
    assert run_hash() != run_hash(learningRate=0.5)


@settings(max_examples=40, deadline=None)
@given(
    st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True),
    st.integers(1, 64),
    st.integers(1, 99_999),
)
def test_names_stay_within_the_limits_of_dns(name, nodes, attempt):
    made = plan(name, training={"nodes": nodes})
    for manifest in [*made.shared, *(m for s in made.stages for m in s.manifests)]:
        assert len(manifest["metadata"]["name"]) <= 63
        for value in manifest["metadata"]["labels"].values():
            assert len(value) <= 63
    for stage in made.stages:
        job = made.manifests(stage.name, attempt)[-1]
        suffix = f"{nodes - 1}" if stage.name == "train" else "x8k2p"
        assert len(f"{job['metadata']['name']}-{suffix}") <= 63


def test_namespace():
    made = make_plan(load_resource(SAMPLES[0]), namespace="team")
    assert {m["metadata"]["namespace"] for s in made.stages for m in s.manifests} == {"team"}


def test_every_worker_knows_the_stages_that_follow():
    made = plan()
    for number, stage in enumerate(made.stages, start=1):
        later = ",".join(f"{s.name}={s.inputs_hash}" for s in made.stages[number:])
        assert env(stage)["V2W_LATER_STAGES"] == later


def test_the_training_group_leaves_a_lost_node_soon():
    mine = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    spec = pod(plan(stages={"train": {"tolerations": [mine]}}).stage("train"))
    assert mine in spec["tolerations"]  # the user's own is kept
    (ours,) = [t for t in spec["tolerations"] if t != mine]
    assert ours["key"] == "node.kubernetes.io/not-ready"
    assert ours["tolerationSeconds"] == 30


@pytest.mark.parametrize(
    ("interconnect", "name", "value"),
    [
        ("Ethernet", "NCCL_IB_DISABLE", "1"),
        ("InfiniBand", "NCCL_NET", "IB"),
        ("RoCE", "NCCL_IB_GID_INDEX", "3"),
        ("EFA", "FI_PROVIDER", "efa"),
    ],
)
def test_interconnect(interconnect, name, value):
    training = {"nodes": 2, "interconnect": interconnect}
    made = plan(model={"size": "2B"}, training=training)
    assert env(made.stage("train"))[name] == value
    assert name not in env(made.stage("latents"))
    assert name not in env(plan(training=training).stage("train"))  # Tiny has no GPU
    assert not any(n.startswith("NCCL") for n in env(plan(model={"size": "2B"}).stage("train")))


def test_the_resource_owns_all_but_the_pvc_unless_retention_is_delete():
    def owners(**storage):
        made = plan(storage=storage)
        made.resource.metadata.uid = "u1"
        every = [*made.shared, *(m for s in made.stages for m in s.manifests)]
        return {
            m["kind"]: owned(m, made.resource)["metadata"].get("ownerReferences", []) for m in every
        }

    kept, deleted = owners(), owners(retention="Delete")
    assert kept["PersistentVolumeClaim"] == []
    for references in (*deleted.values(), kept["Job"], kept["Service"]):
        (reference,) = references
        assert (reference["uid"], reference["controller"]) == ("u1", True)
        assert "blockOwnerDeletion" not in reference


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ({"spec": 5}, "podTemplate.spec: keep a mapping with containers"),
        ({"spec": {"containers": {"name": "train"}}}, "spec.containers: write a list here"),
        (
            {"spec": {"containers": [{"image": "mine"}]}},
            "podTemplate.spec.containers[0]: write a mapping with name, by which it is merged",
        ),
        ({"spec": {"volumes": ["data"]}}, "spec.volumes[0]: write a mapping with name"),
        (
            {"spec": {"containers": [{"name": "train", "volumeMounts": [{"name": "data"}]}]}},
            "spec.containers[0].volumeMounts[0]: write a mapping with mountPath",
        ),
        ({"spec": {"containers": [{"name": "sidecar"}]}}, "set an image for each one"),
        ({"spec": {"containers": None}}, "podTemplate.spec: keep a mapping with containers"),
        ({"metadata": None}, "podTemplate.metadata: keep a mapping with labels"),
        ({"metadata": {"labels": "a"}}, "podTemplate.metadata.labels: write a mapping"),
    ],
)
def test_an_invalid_pod_template_is_refused_before_anything_starts(template, expected):
    with pytest.raises(InvalidResource) as caught:
        plan(stages={"train": {"podTemplate": template}})
    assert "spec.stages.train.podTemplate" in str(caught.value)
    assert expected in str(caught.value)


KEYS = st.sampled_from(
    [
        "metadata",
        "labels",
        "annotations",
        "spec",
        "containers",
        "initContainers",
        "name",
        "image",
        "env",
        "volumes",
        "volumeMounts",
        "mountPath",
        "tolerations",
        "affinity",
        "resources",
        "key",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", "", "x y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3)


@settings(max_examples=200, deadline=None)
@given(OBJECTS, OBJECTS, st.lists(OBJECTS, max_size=2))
def test_any_free_object_renders_or_is_refused(template, affinity, tolerations):
    given = {"podTemplate": template, "affinity": affinity, "tolerations": tolerations}
    try:
        made = plan(stages={"train": given})
    except InvalidResource:
        return
    assert "kind: Job" in to_yaml(made)
