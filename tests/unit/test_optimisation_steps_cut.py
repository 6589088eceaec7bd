"""Models of transformers that are cut: they answer as what is left of them does, and learn in one order."""

from __future__ import annotations

import pytest
import torch

from modelyard.engines.huggingface import open_model
from modelyard.errors import Invalid
from modelyard.optimisation.steps.cut import Answers, apart, cut, learn

TOKENS = torch.arange(2, 20).view(2, 9)
SIZE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}


def model(family: str, **changes: object):
    import transformers

    torch.manual_seed(0)
    kind = f"{family}Model" if family in ("Bert", "ModernBert") else f"{family}ForCausalLM"
    config = {**SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, **changes}
    return getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**config)).eval()


def answer(network) -> torch.Tensor:
    with torch.no_grad():
        made = network(input_ids=TOKENS)
    return made.logits if "logits" in made else made.last_hidden_state


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"num_key_value_heads": 2}),
        ("Qwen2", {"num_key_value_heads": 2}),
        ("Qwen3", {"num_key_value_heads": 2}),
        ("Bert", {}),
        ("ModernBert", {"cls_token_id": 1, "sep_token_id": 1}),
    ],
)
def test_what_is_cut_is_opened_again_and_answers_alike(tmp_path, family, changes):
    network = model(family, **changes)
    whole = answer(network)
    assert cut(network, 3) == [0, 2, 4]
    made = answer(network)
    assert not torch.allclose(made, whole, atol=1e-3)
    network.save_pretrained(tmp_path)
    again, wrong = open_model(tmp_path, "AutoModel" if family.endswith("Bert") else "AutoModelForCausalLM")
    assert not wrong
    assert again.config.num_hidden_layers == 3
    assert torch.allclose(answer(again), made, atol=1e-6)


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0, 4]), (4, [0, 1, 3, 4])])
def test_the_first_and_the_last_layer_stay(layers, kept):
    assert cut(model("Llama", num_key_value_heads=2), layers) == kept


@pytest.mark.parametrize("layers", [5, 6])
def test_a_student_has_fewer_layers_than_its_teacher(layers):
    with pytest.raises(Invalid, match=f"distil:layers={layers}: the teacher has 5 layers; a student of it has from 1 to 4"):
        cut(model("Bert"), layers)


def test_what_is_no_list_of_layers_is_not_cut():
    import transformers

    config = transformers.AlbertConfig(**SIZE, embedding_size=8)
    with pytest.raises(Invalid, match="AlbertModel is not a list of 5 layers"):
        cut(transformers.AlbertModel(config), 2)


def test_answers_of_layers_are_those_of_the_places_they_were_cut_from():
    teacher, student = model("Llama", num_key_value_heads=2), model("Llama", num_key_value_heads=2)
    theirs, own = Answers(teacher, cut(student, 3)), Answers(student, range(3))
    answer(teacher), answer(student)
    assert apart(own.values[0], theirs.values[0]).max() < 1e-9  # of the same layer, which was given the same
    assert apart(own.values[2], theirs.values[2]).min() > 1e-6
    for answers in (theirs, own):
        answers.close()
    assert not any(part._forward_hooks for part in (*teacher.modules(), *student.modules()))


def test_two_networks_see_the_same_rows_in_the_same_order():
    seen = []
    for _ in range(2):
        network, rows = torch.nn.Linear(3, 1), []

        def loss(some, network=network, rows=rows):
            rows.append(some.tolist())
            found = network(torch.ones(len(some), 3)).square().mean()
            found.backward()
            return float(found.detach())

        how = {"epochs": 3, "lr": 0.01, "seed": 1, "check": lambda: None, "say": lambda _: None}
        curve = learn(network, loss, 10, 4, **how)
        assert [(epoch["rows"], epoch["steps"]) for epoch in curve] == [(10, 3)] * 3
        assert curve[-1]["loss"] < curve[0]["loss"]
        seen.append(rows)
    assert seen[0] == seen[1]
    assert sorted(row for step in seen[0][:3] for row in step) == list(range(10))
    assert seen[0][:3] != seen[0][3:6]


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(Invalid, match=r"the loss became nan in epoch 1; try a smaller lr than 0\.5"):
        learn(
            torch.nn.Linear(1, 1),
            lambda _: float("nan"),
            4,
            2,
            epochs=1,
            lr=0.5,
            seed=0,
            check=lambda: None,
            say=lambda _: None,
        )
