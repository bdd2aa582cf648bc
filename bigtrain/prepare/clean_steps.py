"""The parts of a cleaning pipeline: datatrove's own, each with the little that it needs to read our inputs, to count
what it changes and to keep examples of what it drops.

Only this file and `clean` know datatrove. Its pipelines travel to other processes by pickle, so that everything here
is a class or function of the module.
"""

import functools
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.pipeline.readers import IpcReader, JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.lid import LID, FastTextLID
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import load_word_tokenizer

from bigtrain.config.section import Section
from bigtrain.errors import DataError
from bigtrain.prepare.clean_inputs import open_compressed
from bigtrain.prepare.clean_load import is_model_file
from bigtrain.prepare.clean_recipe import (
    C4Quality,
    Decontaminate,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
    Language,
    MaskPii,
    Recipe,
    RepairUnicode,
)

HASHES = HashConfig(precision=64, hash_fc="sha1")
"""datatrove's other hash, xxhash, it hands text, which xxhash 4 does not take."""
EXCERPT = 2000
"""Characters of an example."""
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, pyarrow.ArrowInvalid)


# --- reading and writing ---------------------------------------------------------------------------------------------


class Examples(JsonlWriter):
    """Of the documents that a step drops the first `limit` of each reason and task, shortened."""

    def __init__(self, folder: Path, reason: str, limit: int) -> None:
        super().__init__(str(folder), "${rank}.jsonl", compression=None, adapter=_example)
        self.reason = reason
        self.limit = limit
        self.written: Counter[str] = Counter()

    def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
        """Keep `document` if it is among the first of its reason."""
        reason = document.metadata.setdefault("filter_reason", self.reason)
        self.written[reason] += 1
        if self.written[reason] <= self.limit:
            super().write(document, rank, **kwargs)


class _Reading(BaseDiskReader):
    """Counts records, and those that hold no text by their reason."""

    rejects: Examples

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.rank = rank
        with self.rejects:
            yield from super().run(data, rank, world_size)

    def reject(self, source: str, record: int | str, reason: str, text: object = "") -> None:
        """Count a record that is left out, and show it among the examples."""
        self.stat_update(f"rejected_{reason}")
        where = {"source": source, "record": record, "filter_reason": reason}
        self.rejects.write(Document(str(text), f"{source}#{record}", metadata=where), self.rank)

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The documents of a file; of a damaged one those before the damage."""
        try:
            yield from super().read_file(filepath)
        except _DAMAGE as error:
            self.stat_update("records")
            self.reject(filepath, "end", "damaged file", error)
        except OSError as error:
            if error.errno is None:
                raise
            raise DataError(f"{self.data_folder.resolve_paths(filepath)}: cannot be read ({error.strerror})") from error


class _Lines(BaseDiskReader):
    """JSON lines and plain text, compressed or not."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        with open_compressed(Path(self.data_folder.resolve_paths(filepath))) as file:
            if ".jsonl" not in Path(filepath).suffixes:
                yield from self._document(file.read(), filepath, 0, is_json=False)
                return
            for number, line in enumerate(file):
                yield from self._document(line, filepath, number, is_json=True)

    def _document(self, content: bytes, filepath: str, number: int, is_json: bool) -> Iterator[Document]:
        try:
            record = orjson.loads(content) if is_json else {self.text_key: content.decode()}
            if not isinstance(record, dict):
                raise ValueError("no object")
        except ValueError:  # JSONDecodeError and UnicodeDecodeError are
            self.stat_update("records")
            shown = content[:EXCERPT].decode(errors="backslashreplace")
            self.reject(filepath, number, "not JSON" if is_json else "not UTF-8", shown)
            return
        if document := self.get_document_from_dict(record, filepath, number):
            yield document


class Lines(_Reading, _Lines):
    """Of `.jsonl`, `.txt` and `.md`."""


class Parquet(_Reading, ParquetReader):
    """Of `.parquet`."""


class Arrow(_Reading, IpcReader):
    """Of `.arrow`, as a file or as a stream."""


def _adapt(keep: Sequence[str], reader: Any, data: dict[str, Any], path: str, number: int | str) -> dict[str, Any]:
    """A record as datatrove's Document, with where it is from; without text if it has none.

    datatrove's readers of columns number only the records with text: these are counted here.
    """
    if not isinstance(reader, Lines):
        reader.place = (path, reader.place[1] + 1 if getattr(reader, "place", ("",))[0] == path else 0)
        number = reader.place[1]
    reader.stat_update("records")
    text = data.get(reader.text_key)
    if not isinstance(text, str) or not any(letter.isprintable() and not letter.isspace() for letter in text):
        if reader.text_key not in data:
            why = "no key " + reader.text_key
        else:
            why = "empty" if text is None or isinstance(text, str) else "no string"
        reader.reject(path, number, why, "" if text is None else text)
        text = ""
    name = data.get(reader.id_key)
    return {
        "text": text,
        "id": f"{path}#{number}" if name is None else str(name),
        "metadata": {"source": path, "record": number, "kept": {key: data[key] for key in keep if key in data}},
    }


def readers(recipe: Recipe, base: Path, lists: dict[str, Path], rejects: Path) -> list[PipelineStep]:
    """One reader for each kind of file: `lists[kind]` names its files, below `base`."""
    kinds: dict[str, tuple[type[Any], dict[str, Any]]] = {
        "lines": (Lines, {}),
        "parquet": (Parquet, {}),
        "arrow": (Arrow, {}),
        "arrow-stream": (Arrow, {"stream": True}),
    }
    made = []
    for kind, files in lists.items():
        reading, options = kinds[kind]
        reader = reading(
            str(base),
            paths_file=str(files),
            adapter=functools.partial(_adapt, recipe.keep_keys),
            text_key=recipe.text_key,
            id_key=recipe.id_key,
            **options,
        )
        reader.add_file_path = False
        reader.rejects = Examples(rejects / kind, "unreadable", recipe.examples)
        made.append(reader)
    return made


def between(folder: Path, *, write: bool) -> PipelineStep:
    """Documents written where the next stage reads them, task by task."""
    if write:
        return JsonlWriter(str(folder), "${rank}.jsonl.zst", compression="zstd")
    return Between(str(folder), compression="zstd")


class Between(JsonlReader):
    """Reads what the same task wrote, nothing if it wrote nothing."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        name = f"{rank:05d}.jsonl.zst"
        if self.data_folder.isfile(name):
            yield from self.read_files_shard([name])

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document:
        """The document as it was written, even if a step has left it without text."""
        return Document(text=data.get("text", ""), id=data.get("id", ""), metadata=data["metadata"])


def writer(recipe: Recipe, folder: Path) -> PipelineStep:
    """The shards that come out."""
    ending = {"zstd": "zst", "gzip": "gz"}[recipe.compression]
    return JsonlWriter(str(folder), f"${{rank}}.jsonl.{ending}", compression=recipe.compression, adapter=_output)


def _output(_: JsonlWriter, document: Document) -> dict[str, Any]:
    meta = document.metadata
    own = {"text": document.text, "id": document.id, "source": meta["source"], "record": meta["record"]}
    return {**{key: value for key, value in meta["kept"].items() if key not in own}, **own}


def _example(_: JsonlWriter, document: Document) -> dict[str, Any]:
    meta = document.metadata
    told = {key: meta[key] for key in ("source", "record", "language_score", "contaminated_ngram") if key in meta}
    return {"reason": meta["filter_reason"], "id": document.id, **told, "text": document.text[:EXCERPT]}


# --- steps -----------------------------------------------------------------------------------------------------------


class _CountsChanges:
    """A formatter that counts the documents it changes."""

    def format(self, text: str) -> str:
        changed = super().format(text)  # type: ignore[misc]
        if changed != text:
            self.stat_update("changed")  # type: ignore[attr-defined]
        return changed


class RepairText(_CountsChanges, FTFYFormatter):
    """ftfy."""


class MaskText(_CountsChanges, PIIFormatter):
    """E-mail and IP addresses."""


class Py3LangId(LID):
    """The languages that `py3langid` knows, as datatrove asks for them."""

    _identifier: Any = None

    def predict(self, doc: Document) -> tuple[tuple[str, float], dict[str, float]]:
        """The likeliest language with its probability, and the probabilities of those asked for."""
        if self._identifier is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        ranked = {language: float(probability) for language, probability in self._identifier.rank(doc.text)}
        best = max(ranked, key=lambda language: ranked[language])
        return (best, ranked[best]), {language: ranked.get(language, 0.0) for language in self.languages or ranked}


class FastTextFile(FastTextLID):
    """A fastText model in a file of the user's."""

    def __init__(self, languages: list[str], path: str) -> None:
        super().__init__(languages)
        self.path = path
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            from fasttext.FastText import _FastText

            self._model = _FastText(self.path)
        return self._model


class KeepLanguages(LanguageFilter):
    """datatrove's filter with more models to choose from, telling the language of what it drops."""

    def __init__(self, languages: list[str], language_threshold: float, model: str, exclusion_writer: Any) -> None:
        backend = model if model == "glotlid" else "ft176"
        super().__init__(languages, language_threshold, exclusion_writer, backend)
        if model == "py3langid":
            self.model = Py3LangId(languages)
        elif is_model_file(model):
            self.model = FastTextFile(languages, model)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or false and the language, or that one of those to keep is too unsure."""
        if super().filter(doc):
            return True
        language = doc.metadata["language"]
        return False, f"language {language}{', unsure' if language in self.languages else ''}"


def step(options: Section, recipe: Recipe, index: Path, examples: Examples) -> PipelineStep:
    """The datatrove step for a step of one stage; `index` is where `index_benchmarks` wrote."""
    given = options.model_dump(exclude={"step"})
    kept = {"exclusion_writer": examples}
    match options:
        case RepairUnicode():
            return RepairText(**given)
        case MaskPii():
            replacements = {key: tuple(given.pop(key)) for key in ("email_replacement", "ip_replacement")}
            return MaskText(**given, **replacements)
        case Language():
            return KeepLanguages(**given, **kept)
        case GopherQuality():
            return GopherQualityFilter(**given, **kept, language=recipe.language)
        case GopherRepetition():
            pairs = {key: tuple(given.pop(key).items()) for key in ("top_n_grams", "dup_n_grams")}
            return GopherRepetitionFilter(**given, **pairs, **kept, language=recipe.language)
        case C4Quality():
            return C4QualityFilter(**given, **kept, language=recipe.language)
        case FineWebQuality():
            return FineWebQualityFilter(**given, **kept, language=recipe.language)
        case Decontaminate():
            return NGramsDecontFilter(str(index), decontamination(options), examples, recipe.language)
    raise AssertionError(options)


# --- decontamination -------------------------------------------------------------------------------------------------


def decontamination(options: Decontaminate) -> NGramsDecontConfig:
    """datatrove's configuration of the index and the filter."""
    return NGramsDecontConfig(n_grams=options.n_grams, hash_config=HASHES)


def index_benchmarks(options: Decontaminate, language: str, folder: Path) -> dict[str, dict[str, int]]:
    """Write the n-grams of the benchmarks where datatrove's filter looks for them.

    datatrove's own indexer cannot be made without `lighteval` and its hub of tasks; the n-grams and their hashes are
    datatrove's here too.

    Returns: for each benchmark its items, and how many of them are too short to be found.

    Raises:
        DataError: a file cannot be read, is not JSON, or two have the same name.
    """
    config = decontamination(options)
    words, hashed = load_word_tokenizer(language), create_hash_func(config.hash_config)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, int]] = {}
    for path in options.benchmarks:
        name = Path(path).name.split(".")[0]
        if name in found:
            raise DataError(f"{path}: there is another benchmark named {name}; a report could not tell them apart")
        found[name] = {"items": 0, "too_short": 0}
        hashes: set[int] = set()
        for text in _items(Path(path)):
            tokens = words.word_tokenize(simplify_text(text, config.norm_config))
            grams = {hashed(" ".join(gram)) for gram in ngrams(tokens, config.n_grams)}
            found[name]["items"] += 1
            found[name]["too_short"] += not grams
            hashes |= grams
        index = np.array(sorted(hashes), dtype=config.hash_config.np_descr)
        index.tofile(folder / f"{name}.index.hashes")
    return found


def _items(path: Path) -> Iterator[str]:
    try:
        with open_compressed(path) as file:
            if ".jsonl" not in path.suffixes:
                yield file.read().decode()
                return
            for number, line in enumerate(file, 1):
                try:
                    yield " ".join(_strings(orjson.loads(line)))
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error})") from None
    except (OSError, UnicodeDecodeError, *_DAMAGE) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _strings(value: Any) -> Iterator[str]:
    """All text in a record, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _strings(inside)
