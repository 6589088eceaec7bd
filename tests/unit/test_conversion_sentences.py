"""How tokens become one vector is read off the folder, and refused where it cannot be kept."""

import json

import pytest

from modelyard.conversion.sentences import Sentences, read
from modelyard.errors import Invalid, Unsafe

FLAGS = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
TYPE = "sentence_transformers.models."


def steps(*names, path="1_Pooling"):
    paths = ("", path, "2_Normalize", "3")
    return [{"idx": i, "name": str(i), "path": paths[i], "type": TYPE + name} for i, name in enumerate(names)]


def folder(tmp_path, modules=None, pooling=None, **more):
    (tmp_path / "1_Pooling").mkdir()
    files = {"modules.json": modules, "1_Pooling/config.json": pooling, **{f"{name}.json": said for name, said in more.items()}}
    for name, said in files.items():
        if said is not None:
            (tmp_path / name).write_text(said if isinstance(said, str) else json.dumps(said))
    return tmp_path


WHOLE = steps("Transformer", "Pooling", "Normalize")


@pytest.mark.parametrize(
    ("modules", "pooling", "found"),
    [
        (None, None, Sentences("mean", False)),
        (WHOLE, FLAGS, Sentences("mean", True, None, True)),
        (WHOLE[:2], FLAGS, Sentences("mean", False, None, True)),
        (WHOLE[:2], {"pooling_mode_cls_token": True}, Sentences("cls", False, None, True)),
        (WHOLE, {"pooling_mode": "cls", "embedding_dimension": 8}, Sentences("cls", True, None, True)),
    ],
)
def test_the_folder_is_followed(tmp_path, modules, pooling, found):
    assert read(folder(tmp_path, modules, pooling)) == found


def test_the_length_is_the_folders(tmp_path):
    assert read(folder(tmp_path, WHOLE, FLAGS, sentence_bert_config={"max_seq_length": 256})).length == 256


def test_the_note_says_what_was_chosen(tmp_path):
    assert Sentences().note == (
        "Of a text's token vectors it gives their mean, not normalised, for there is no modules.json to say so."
    )
    assert "the first one, normalised to length 1, as modules.json says" in Sentences("cls", True, None, True).note


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modules": steps("Transformer", "Pooling", "Dense", "Normalize")}, "names Transformer, Pooling, Dense, Normalize"),
        ({"modules": steps("Transformer")}, "names Transformer;"),
        ({"modules": [{**WHOLE[0], "path": "0_Transformer"}, WHOLE[1]]}, "at the top"),
        ({"modules": [{"idx": 0}]}, "each with type and path"),
        ({"modules": {}}, "not of the form"),
        ({"modules": "["}, "modules.json is not JSON"),
        ({"pooling": None}, "no file '1_Pooling/config.json'"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pooling by pooling_mode_max_tokens"),
        ({"pooling": {**FLAGS, "pooling_mode_cls_token": True}}, "pooling_mode_cls_token, pooling_mode_mean_tokens"),
        ({"pooling": {}}, "pooling by nothing"),
        ({"sentence_bert_config": {"do_lower_case": True}}, "lower case"),
        ({"config_sentence_transformers": {"default_prompt_name": "query"}}, "puts a prompt before each text"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, given, said):
    with pytest.raises(Invalid, match=said):
        read(folder(tmp_path, **{"modules": WHOLE, "pooling": FLAGS, **given}))


def test_no_path_leads_out_of_the_folder(tmp_path):
    with pytest.raises(Unsafe):
        read(folder(tmp_path, steps("Transformer", "Pooling", path="../1_Pooling"), FLAGS))
