"""Names and folders that others made: no path out of the output, no formula in a table, no pickle."""

import pickle

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from search_r3_mteb.encoder.folders import refuse_pickled_modules
from search_r3_mteb.evaluation.systems import open_systems, split_label
from search_r3_mteb.report.tables import _csv
from tests.conftest import save_sentence_transformer


@pytest.mark.parametrize("label", ["..", ".", "...", " .. ", "a\x1bb", "a\nb", "..\\x"])
def test_a_label_that_is_no_file_name(label):
    with pytest.raises(ValueError, match="cannot be the name of a model: files and folders"):
        split_label(f"{label}=models/a")


def test_labels_with_dots_and_slashes_are_names():
    for label in ("v1.5", "org/model", "..a", "naïve 東"):
        assert split_label(f"{label}=models/a") == (label, "models/a")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1", "\uff1d1"])
def test_a_cell_of_a_table_is_no_formula(text):
    found = _csv(pd.DataFrame({"model": [text, "a=b"], "difference": [-0.5, 1.0]}))
    assert f"'{text}" in found
    assert "a=b,1.0" in found.replace("'a", "a")
    assert "'a=b" not in found
    assert "-0.5" in found
    assert "'-0.5" not in found


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_pickled_modules_of_a_folder_are_refused(tiny_tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    plain = save_sentence_transformer(tiny_tokenizer, tmp_path / "plain", seed=0)
    made = SentenceTransformer(str(plain), device="cpu")
    made.append(Dense(32, 16))
    folder = tmp_path / "dense"
    made.save_pretrained(str(folder))
    refuse_pickled_modules(folder)  # the control: weights in safetensors pass
    [system] = open_systems(folder, "direct", {"device": "cpu"}, tmp_path / "store")
    assert system.mode == "direct"
    [weights] = folder.glob("*_Dense/model.safetensors")
    save_file(load_file(weights), weights.with_name("kept"))
    weights.unlink()
    weights.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match=r"the weights of a module are pickled .*_Dense/pytorch_model\.bin"):
        next(iter(open_systems(folder, "direct", {"device": "cpu"}, tmp_path / "store")))
