"""A cleaning recipe: the documents, the steps that they go through in order, and where that runs.

A filter's options have the names and the defaults that `datatrove` gives them, so that its documentation and the
published recipes apply. `docs/cleaning.md` lists them from here.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

from bigtrain.config.section import Fraction, Section, Text

Limit = Annotated[float, Field(ge=0)]


class RepairUnicode(Section):
    """Mends text that was decoded wrongly (`cafÃ©`), with `ftfy`. Drops nothing."""

    step: Literal["repair_unicode"]
    unescape_html: Literal["auto"] | bool = "auto"
    """`&amp;` becomes `&`; `auto` leaves text alone that holds a `<`."""
    fix_encoding: bool = True
    """Undo UTF-8 that was read as another encoding."""
    fix_latin_ligatures: bool = False
    """`ﬁ` becomes two letters."""
    fix_character_width: bool = False
    """Full-width and half-width letters become ordinary ones; wrong for Chinese and Japanese punctuation."""
    uncurl_quotes: bool = False
    """Typographic quotes become straight."""
    fix_line_breaks: bool = False
    """All kinds of line ends become a newline."""
    remove_control_chars: bool = True
    """Drop control characters."""
    normalization: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None
    """Unicode's normal form to bring the text to; default: as it is."""


class Language(Section):
    """Keeps documents in some languages."""

    step: Literal["language"]
    languages: Annotated[list[Text], Field(min_length=1)]
    """The languages to keep, in the model's codes: `en`, `de`; GlotLID has `eng_Latn`."""
    language_threshold: Fraction = 0.65
    """The probability that one of them must exceed."""
    model: Text = "py3langid"
    """`py3langid` (97 languages, comes with its package), the path of a fastText model (`lid.176.bin`, `lid.176.ftz`),
    or `ft176` or `glotlid`, which datatrove downloads on first use."""


class GopherQuality(Section):
    """Rules on words of Gopher (arXiv:2112.11446, section A.1.1)."""

    step: Literal["gopher_quality"]
    min_doc_words: NonNegativeInt | None = 50
    """Words, at least."""
    max_doc_words: NonNegativeInt | None = 100000
    """Words, at most."""
    min_avg_word_length: NonNegativeInt | None = 3
    """Mean length of a word in characters, at least."""
    max_avg_word_length: NonNegativeInt | None = 10
    """Mean length of a word in characters, at most."""
    max_symbol_word_ratio: Limit | None = 0.1
    """Hashes or ellipses for each word, at most."""
    max_bullet_lines_ratio: Fraction | None = 0.9
    """Share of lines that begin with a bullet, at most."""
    max_ellipsis_lines_ratio: Fraction | None = 0.3
    """Share of lines that end with an ellipsis, at most."""
    max_non_alpha_words_ratio: Fraction | None = 0.8
    """Share of words with a letter in them, at least (datatrove's name says the contrary)."""
    min_stop_words: NonNegativeInt | None = 2
    """Different stop words, at least."""
    stop_words: list[Text] | None = None
    """The stop words; default: Gopher's eight English ones."""


class GopherRepetition(Section):
    """Rules on repetition of Gopher (arXiv:2112.11446, table A1)."""

    step: Literal["gopher_repetition"]
    dup_line_frac: Fraction | None = 0.3
    """Share of lines that were there before, at most."""
    dup_para_frac: Fraction | None = 0.3
    """Share of paragraphs that were there before, at most."""
    dup_line_char_frac: Fraction | None = 0.2
    """Share of characters in such lines, at most."""
    dup_para_char_frac: Fraction | None = 0.2
    """Share of characters in such paragraphs, at most."""
    top_n_grams: dict[PositiveInt, Fraction] = Field({2: 0.2, 3: 0.18, 4: 0.16})
    """For each n, the share of characters in the most frequent n-gram of words, at most."""
    dup_n_grams: dict[PositiveInt, Fraction] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """For each n, the share of characters in n-grams of words that were there before, at most."""


class C4Quality(Section):
    """Rules on lines of C4 (arXiv:1910.10683, section 2.2). Also drops lines out of the documents it keeps."""

    step: Literal["c4_quality"]
    split_paragraph: bool = True
    """Judge lines; false judges sentences."""
    remove_citations: bool = True
    """Drop `[3]`, `[edit]` and `[citation needed]`."""
    filter_no_terminal_punct: bool = True
    """Drop lines that do not end in `.`, `?`, `!` or a quote."""
    min_num_sentences: PositiveInt = 5
    """Sentences that must be left, at least."""
    min_words_per_line: Annotated[int, Field(ge=-1)] = 3
    """Drop lines of fewer words; -1: none."""
    max_word_length: Annotated[int, Field(ge=-1)] = 1000
    """Drop lines with a longer word, in characters; -1: none."""
    filter_lorem_ipsum: bool = True
    """Drop documents with `lorem ipsum`."""
    filter_javascript: bool = True
    """Drop lines that speak of JavaScript."""
    filter_curly_bracket: bool = True
    """Drop documents with a `{`."""
    filter_policy: bool = True
    """Drop lines about cookies, privacy policies and terms of use."""


class FineWebQuality(Section):
    """Rules on lines of FineWeb (arXiv:2406.17557, section 3.6)."""

    step: Literal["fineweb_quality"]
    line_punct_thr: Fraction = 0.12
    """Share of lines that end in punctuation, at least."""
    line_punct_exclude_zero: bool = False
    """Let documents pass in which no line does."""
    short_line_thr: Fraction = 0.67
    """Share of short lines, at most."""
    short_line_length: NonNegativeInt = 30
    """A line of so many characters is short."""
    char_duplicates_ratio: Fraction = 0.01
    """Share of characters in lines that were there before, at most."""
    new_line_ratio: Limit = 0.3
    """Line ends for each word, at most."""


class ExactDedup(Section):
    """Keeps one of the documents with the same text."""

    step: Literal["exact_dedup"]
    finders: PositiveInt = 1
    """Tasks that look for equal fingerprints, each among its part of them."""


class MinhashDedup(Section):
    """Keeps one of the documents that share most of their n-grams (MinHash with locality-sensitive hashing).

    Two documents whose n-grams agree to a share s meet with probability 1 - (1 - s^hashes_per_bucket)^num_buckets.
    """

    step: Literal["minhash_dedup"]
    n_grams: PositiveInt = 5
    """Words of a shingle; a document of fewer words is never a duplicate."""
    num_buckets: PositiveInt = 14
    """Buckets, and tasks that look for pairs."""
    hashes_per_bucket: PositiveInt = 8
    """Hashes that must all be equal in a bucket."""
    seed: NonNegativeInt = 1
    """Of the hash functions."""


class MaskPii(Section):
    """Replaces e-mail and IP addresses. Drops nothing."""

    step: Literal["mask_pii"]
    remove_emails: bool = True
    """Replace e-mail addresses."""
    remove_ips: bool = True
    """Replace IPv4 addresses."""
    only_remove_public_ips: bool = True
    """Leave addresses such as 192.168.0.1 alone."""
    email_replacement: list[Text] = Field(["email@example.com", "firstname.lastname@example.org"])
    """What stands for e-mail addresses, in turn."""
    ip_replacement: list[Text] = Field(["192.0.2.1", "198.51.100.1", "203.0.113.1"])
    """What stands for IP addresses, in turn; these are reserved for documentation (RFC 5737)."""

    @field_validator("email_replacement", "ip_replacement")
    @classmethod
    def _some(cls, words: list[str]) -> list[str]:
        if not words:
            raise ValueError("an empty list replaces nothing")
        return words


class Decontaminate(Section):
    """Drops documents that share an n-gram of words with a benchmark."""

    step: Literal["decontaminate"]
    benchmarks: Annotated[list[Text], Field(min_length=1)]
    """Files of test items: of `.jsonl` (`.gz`, `.zst`) all text in each record, of other files the whole text."""
    n_grams: PositiveInt = 12
    """Words that must agree, in lower case and without punctuation; shorter items cannot be found."""


Step = Annotated[
    RepairUnicode
    | Language
    | GopherQuality
    | GopherRepetition
    | C4Quality
    | FineWebQuality
    | ExactDedup
    | MinhashDedup
    | MaskPii
    | Decontaminate,
    Field(discriminator="step"),
]
STEPS: dict[str, type[Section]] = {
    get_args(kind.model_fields["step"].annotation)[0]: kind for kind in get_args(get_args(Step)[0])
}
"""Every kind of step by its name."""


class Executor(Section):
    """Where the tasks run."""

    kind: Literal["local", "slurm"] = "local"
    """This machine, or jobs of Slurm, submitted from here and chained by dependencies."""
    partition: Text | None = None
    """Slurm's partition (needed there)."""
    time: Text | None = None
    """A job's time limit, `24:00:00` (needed on Slurm)."""
    qos: Text | None = None
    """Slurm's quality of service; default: the site's."""
    cpus_per_task: PositiveInt = 1
    """Cores of a task."""
    mem_per_cpu_gb: PositiveInt = 2
    """Memory of a core, GB."""
    max_array_size: PositiveInt = 1001
    """The site's MaxArraySize; more tasks are submitted as several arrays."""
    env_command: Text | None = None
    """Shell line that makes `bigtrain`'s Python available in a job; default: the one that submits, by its path."""
    sbatch_args: dict[Text, Text | int] = Field({})
    """More options of `sbatch`: `{account: mine}`."""

    @model_validator(mode="after")
    def _slurm_needs(self, _: ValidationInfo) -> "Executor":
        missing = [key for key in ("partition", "time") if getattr(self, key) is None]
        if self.kind == "slurm" and missing:
            raise ValueError(f"executor.kind = slurm needs {' and '.join(f'executor.{key}' for key in missing)}")
        return self


class Recipe(Section):
    """What `bigtrain data clean` does."""

    inputs: Annotated[list[Text], Field(min_length=1)]
    """Files, or folders that are searched through, of `.jsonl`, `.parquet`, `.arrow`, `.txt` and `.md`; `.jsonl` and
    text also with `.gz` or `.zst`."""
    output: Text
    """The folder to make."""
    pattern: Text = "*"
    """Names to take from folders."""
    text_key: Text = "text"
    """Field of a record that holds the text."""
    id_key: Text = "id"
    """Field of a record that names it; a record without it is named `source#record`."""
    keep_keys: list[Text] = Field([])
    """More fields of a record to carry along."""
    language: Text = "en"
    """Whose rules split text into words and sentences."""
    tasks: PositiveInt | None = None
    """Parts that the inputs are shared out to, whole files each, and shards written; part of the result. Default: one a
    file, at most 1,000."""
    workers: PositiveInt | None = None
    """Tasks at a time; default: one a core here, no limit on Slurm."""
    compression: Literal["zstd", "gzip"] = "zstd"
    """Of the shards."""
    examples: NonNegativeInt = 20
    """Documents to show in the report for each step and reason."""
    keep_intermediate: bool = False
    """Keep `OUTPUT/tasks/stages`: documents between the stages, fingerprints and duplicates."""
    steps: Annotated[list[Step], Field(min_length=1)]
    """What the documents go through, in order; each kind at most once."""
    executor: Executor = Executor()
    """Where that runs."""

    @field_validator("steps")
    @classmethod
    def _once(cls, steps: list[Any]) -> list[Any]:
        names = [step.step for step in steps]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"steps has {name} {names.count(name)} times; each kind at most once")
        return steps
