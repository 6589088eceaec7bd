"""Models of transformers, whole and under LoRA, on every axis: what a gang trains is what one process trains, to 1e-12 in
float64, or it is refused before the first step.

As `test_training_meshes.py`, by a launcher that has imported transformers. A part runs always, the rest in `make soak`.
"""

import subprocess
import sys

import pytest
from test_training_meshes import HERE, Launcher, agrees, apart, misses_nothing

LORA, TIED = {"adapted": {}}, {"tie_word_embeddings": True}
MESHES = ["data=2", "shard=2", "tensor=2", "pipe=2", "data=2,shard=2", "data=2,tensor=2", "shard=2,tensor=2", "tensor=2,pipe=2",
          "shard=2,pipe=2", "data=2,pipe=2", "shard=2,tensor=2,pipe=2"]  # fmt: skip
COVER = [
    ("llama", "tensor=2", {**LORA, **TIED}),
    ("llama", "pipe=2", {**LORA, **TIED}),
    ("llama", "pipe=2", {}),
    ("qwen", "tensor=2", {}),
    ("bert", "pipe=2", {}),
]


@pytest.fixture(scope="module")
def gang(tmp_path_factory):
    command = [sys.executable, str(HERE / "mesh_transformers.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        yield Launcher(process, tmp_path_factory.mktemp("mesh"))
        process.stdin.close()


@pytest.mark.parametrize(("model", "mesh", "arguments"), COVER)
def test_a_mesh_trains_what_one_process_trains(gang, model, mesh, arguments):
    agrees(gang, model, mesh, arguments=arguments)


@pytest.mark.soak
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("arguments", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("model", ["llama", "llama-classifier", "qwen", "bert", "vit"])
def test_every_mesh_trains_what_one_process_trains(gang, model, mesh, arguments):
    agrees(gang, model, mesh, arguments=arguments)


@pytest.mark.soak
@pytest.mark.parametrize("mesh", ["tensor=2", "pipe=2", "shard=2,tensor=2"])
@pytest.mark.parametrize("arguments", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("model", ["phi", "olmo", "neox"])
def test_other_classes_train_what_one_process_trains(gang, model, mesh, arguments):
    agrees(gang, model, mesh, arguments=arguments)


@pytest.mark.soak
@pytest.mark.parametrize("mesh", ["tensor=2", "pipe=2"])
def test_a_class_whose_norms_compute_in_float32_agrees_to_that(gang, mesh):
    said, state = gang("gemma", mesh)
    assert "message" not in said[0], said[0]
    assert apart(state, gang.alone("gemma")[1]) <= 1e-5


@pytest.mark.soak
@pytest.mark.parametrize("mesh", ["shard=2", "tensor=2", "data=2,tensor=2"])
def test_tied_embeddings_learn_as_one(gang, mesh):
    agrees(gang, "llama", mesh, arguments=TIED, clip=0.5)


@pytest.mark.soak
@pytest.mark.parametrize("options", [{"recompute": True}, {"schedule": "interleaved", "pieces": 4}, {"schedule": "gpipe"}])
def test_every_way_through_a_pipe_agrees(gang, options):
    agrees(gang, "llama", "pipe=2", arguments=LORA, options=options)


def test_the_comparison_sees_gradients_of_whole_layers_that_are_not_added_up(gang):
    """The control along `tensor`, where a norm of each head is whole and applied to a part of the heads."""
    misses_nothing(gang, "qwen", "tensor=2", arguments={})


@pytest.mark.parametrize(
    ("model", "mesh", "arguments", "told"),
    [
        ("llama", "tensor=4", {}, "num_key_value_heads of 'model' is 2, which the axis tensor=4 does not divide"),
        ("llama", "pipe=2", TIED, "are one parameter that learns, but lie in stages [0, 1] of the axis pipe"),
        ("gpt2", "tensor=2", {}, "transformers says nothing of GPT2LMHeadModel; use the axes data, shard and pipe"),
        ("gpt2", "pipe=2", {}, "The model cannot be run in stages"),
        ("llama", "tensor=2", {**LORA, "forgotten": "columns"}, "the model cannot be computed as PARALLEL splits it"),
        ("llama", "tensor=2", {**LORA, "forgotten": "rows"}, "the model cannot be computed as PARALLEL splits it"),
        ("qwen", "tensor=2", {"forgotten": "shared"}, "the gradient of 'model.model.layers.0.self_attn.q_norm.weight' is off"),
    ],
)
def test_what_cannot_be_split_is_refused_before_the_first_step(gang, model, mesh, arguments, told):
    said, _ = gang(model, mesh, arguments=arguments)
    assert all(one["error"] == "invalid_request" for one in said), said
    assert told in said[0]["message"]
