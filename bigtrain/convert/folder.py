"""The weights in a Hugging Face folder: which there are, checked, and read one at a time."""

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.convert.family import Family
from bigtrain.convert.mapping import some
from bigtrain.errors import ConversionError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What weights may be saved in."""
_OUTPUT = "lm_head.weight"


class Folder:
    """The weights of a family's model, under the family's names. Threads may read at the same time."""

    def __init__(self, path: Path, family: Family, tied: bool) -> None:
        """Look into every file.

        Args:
            path: The Hugging Face folder.
            family: Whose names the weights have.
            tied: Whether the output layer is the embedding; a copy of it in the files must be equal.

        Raises:
            ConversionError: A file is missing or damaged, the index and the files do not agree, or there is a tensor
                of a type that weights cannot have.
        """
        self.path = path
        self.files, index = _weight_files(path)
        self._places: dict[str, tuple[_File, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Without buffers, and without the output layer where it is tied."""
        self.dtype = torch.float32
        """The type of the weights; of several the widest."""
        self._look_into_files(family, index)
        if tied:
            self._leave_out_tied(family)

    def read(self, name: str) -> Tensor:
        """One weight, in the type it is saved in.

        Raises:
            ConversionError: Its file is damaged.
        """
        file, there = self._places[name]
        return file.read(there)

    def digest(self) -> str:
        """SHA-256 over the names and contents of the files with weights, in hexadecimal."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.name.encode() + b"\0")
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    def _look_into_files(self, family: Family, index: dict[str, str] | None) -> None:
        buffers = re.compile("|".join(family.buffers)) if family.buffers else None
        dtypes = set()
        opened = [_PickledFile(file) if file.suffix == ".bin" else _SafetensorsFile(file) for file in self.files]
        there = {file.path.name: file.names() for file in opened}
        if index is not None:
            _check_index(self.path, index, there)
        bare = family.prefix and not any(name.startswith(family.prefix) for names in there.values() for name in names)
        for file in opened:
            for name in there[file.path.name]:
                full = _as_now(family.prefix + name if bare and name != _OUTPUT else name, family)
                if buffers and buffers.fullmatch(full):
                    continue
                if full in self._places:
                    raise ConversionError(f"{name} is in {self._places[full][0].path.name} and in {file.path}")
                self._places[full] = (file, name)
                self.shapes[full], dtype = file.describe(name)
                dtypes.add(dtype)
        self._leave_out_copies(family)
        for dtype in dtypes:
            self.dtype = dtype if len(dtypes) == 1 else torch.promote_types(self.dtype, dtype)

    def _leave_out_copies(self, family: Family) -> None:
        """A tensor that is there under its other name alone has that of which it is a copy."""
        for copy, name in family.copies.items():
            if copy in self.shapes and name not in self.shapes:
                self._places[name], self.shapes[name] = self._places[copy], self.shapes[copy]
            elif copy in self.shapes and not self._are_equal(copy, name):
                raise ConversionError(f"{self.path}: {copy} is not equal to {name}; in a {family.name} they are one")
            self.shapes.pop(copy, None)

    def _leave_out_tied(self, family: Family) -> None:
        """What the output layer is called, and the embedding, the family's map tells."""
        (output,) = family.weights["output_layer.weight"]
        (embedding,) = family.weights["embedding.word_embeddings.weight"]
        if output in self.shapes and embedding in self.shapes:
            if not self._are_equal(output, embedding):
                raise ConversionError(
                    f"{self.path}: tie_word_embeddings is true, but {output} is not equal to {embedding}; "
                    "set it to false in config.json, or leave the tensor out"
                )
            del self.shapes[output]

    def _are_equal(self, one: str, other: str) -> bool:
        return self.shapes[one] == self.shapes[other] and torch.equal(self.read(one), self.read(other))


def _as_now(name: str, family: Family) -> str:
    """The name as newer files have it."""
    for old, new in family.endings.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


class _File(Protocol):
    path: Path

    def names(self) -> list[str]: ...

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]: ...

    def read(self, name: str) -> Tensor: ...


class _SafetensorsFile:
    """Opened anew for every tensor: it is mapped into memory, and what was read of it would stay there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        try:
            with safe_open(self.path, "pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{self.path} is damaged: {error}") from None

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        with safe_open(self.path, "pt") as file:
            entry = file.get_slice(name)
            shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
        return shape, _weight_dtype(self.path, name, _DTYPES.get(dtype), dtype)

    def read(self, name: str) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)


class _PickledFile:
    """Read with nothing executed: tensors alone can be in it. Mapped into memory as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError) as error:
            raise ConversionError(
                f"{path} cannot be read as pickled weights and nothing else ({str(error).splitlines()[0]}); "
                "save the model again with transformers' save_pretrained, which writes safetensors"
            ) from None
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise ConversionError(f"{path} holds something else than tensors by their names")
        self._content: dict[str, Tensor] = content

    def names(self) -> list[str]:
        return list(self._content)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        tensor = self._content[name]
        known = tensor.dtype if tensor.dtype in _DTYPES.values() else None
        return tuple(tensor.shape), _weight_dtype(self.path, name, known, tensor.dtype)

    def read(self, name: str) -> Tensor:
        return self._content[name]


def _weight_dtype(path: Path, name: str, dtype: torch.dtype | None, given: object) -> torch.dtype:
    if dtype is None:
        raise ConversionError(f"{path}: {name} is of type {given}; weights can be {', '.join(_DTYPES)} here")
    return dtype


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files that hold weights, and where the index says that each tensor is, if there is one.

    Raises:
        ConversionError: There are none, or the index cannot be read or names one that is not there.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index_path = folder / f"{whole}.index.json"
        if index_path.is_file():
            index = _read_index(index_path)
            names = sorted(set(index.values()))
            if missing := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
                raise ConversionError(f"{index_path} names {some(missing)}, and {folder} has no such file")
            return [folder / name for name in names], index
        if (folder / whole).is_file():
            return [folder / whole], None
    raise ConversionError(f"{folder} holds no weights: neither model.safetensors nor its index, nor pytorch_model.bin")


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} is damaged: {error!r}") from None


def _check_index(folder: Path, index: dict[str, str], there: dict[str, list[str]]) -> None:
    found = {name: file for file, names in there.items() for name in names}
    if missing := sorted(name for name, file in index.items() if name not in there[file]):
        raise ConversionError(f"{folder}: the index says that {some(missing)} is in {index[missing[0]]}, and it is not")
    if extra := sorted(found.keys() - index.keys()):
        raise ConversionError(f"{folder / found[extra[0]]} holds {some(extra)}, which the index does not name")
