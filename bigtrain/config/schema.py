"""Every option of a run, by concern. The docstring under a field is its documentation.

The sections are frozen: a run's configuration is a value. Names are those of Hugging Face's model
configurations and of PyTorch's arguments wherever these have one. `docs/configuration.md` is made
from this file.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from bigtrain.config.launch import LaunchConfig
from bigtrain.config.model import ModelConfig
from bigtrain.config.section import Fraction, NonNegative, Probability, Section, Text
from bigtrain.config.tasks import FinetuneConfig


class TokenizerConfig(Section):
    """The tokenizer; needed where text is made into tokens or back."""

    path: Text | None = None
    """A SentencePiece model (`.model`), a Hugging Face `tokenizer.json` or a tiktoken file; default: the copy that
    lies in the dataset's folder. It must be the one that made the data."""


class SourceConfig(Section):
    """One part of a mixture. Its share is given by one of `weight`, `tokens` and `epochs`; by none of them it is as its
    size, see `data.temperature`."""

    path: Text
    """Folder or URL of a dataset, as `data.train`."""
    weight: PositiveFloat | None = None
    """Its share, beside the other sources' weights."""
    tokens: PositiveFloat | None = None
    """Tokens to read of it until the first of `data.stages`, or else in the whole run."""
    epochs: PositiveFloat | None = None
    """The same as a multiple of its size."""


class StageConfig(Section):
    """A change of the mixture; one of `step` and `share` says when."""

    step: PositiveInt | None = None
    """Steps done before it."""
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same as a share of `training.steps`."""
    weights: dict[str, NonNegative]
    """Shares of the sources from then on, by name; of one that is not named: none."""


class DataConfig(Section):
    """Where the tokens come from."""

    train: Text | None = None
    """Folder of Arrow shards with a `dataset.json`, as `bigtrain data prepare` writes it, or a URL that fsspec can
    read: `s3://`, `gs://`, `hf://`, `https://`."""
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """A mixture in its place: several datasets, each with a name. Which source a sample comes from is a pure function
    of its position, and at any point of the run exact to within one sample."""
    temperature: PositiveFloat = 1.0
    """Sources without a share of their own get it as size ** (1 / temperature) (arXiv:1907.05019): 1 is in proportion,
    more lifts the small ones."""
    stages: list[StageConfig] = Field(default_factory=list)
    """Changes of the mixture as the run goes on, in order, such as better data for the last tenth."""
    validation: Text | None = None
    """A dataset of held-out text; default: no validation."""
    shuffle: bool = True
    """Read the samples in a pseudo-random order, a pure function of (seed, epoch, position)."""
    shuffle_window: PositiveInt | None = None
    """Tokens of a stretch of the dataset whose samples are shuffled together, the stretches taking turns in a
    pseudo-random order too, so that reading stays within a few shards; default: all of a local dataset, 2**28 behind
    a URL."""
    packing: Literal["contiguous", "documents", "best_fit", "padded"] = "contiguous"
    """How documents share a sample: `contiguous`, in one stream that attention reads across; `documents`, the same
    stream, but each unseen by its neighbours and with positions that begin at 0; `best_fit`, the same apart, and put
    together so that few are cut (arXiv:2404.10830); `padded`, one in each, the rest padded."""
    mask_document_boundaries: bool = False
    """Leave the first token of every document out of the loss: nothing before it says what it is. With `best_fit` and
    `padded` this is so anyway."""
    fim_rate: Fraction = 0.0
    """Share of the documents that are turned around to have their middle filled in (arXiv:2207.14255)."""
    fim_spm_rate: Fraction = 0.5
    """Of those the share in the order suffix, prefix, middle; the others are prefix, suffix, middle."""
    mlm_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that BERT is to predict: 80 % of them hidden, 10 % replaced, 10 % as they are, drawn anew in
    every epoch (arXiv:1810.04805, section 3.1)."""
    whole_word_masking: bool = False
    """Choose all tokens of a word for that or none."""
    sentence_objective: Literal["none", "next", "order"] = "none"
    """BERT also learns whether a sample's second half follows on its first, instead of being another sample's (`next`),
    or whether the two were swapped (`order`, arXiv:1909.11942)."""
    objective: Literal["span_corruption", "prefix_lm", "ul2"] = "span_corruption"
    """What a T5 learns from: spans that were cut out of the text (arXiv:1910.10683, section 3.1.4), the rest of a text
    (3.3.1), or UL2's mixture (arXiv:2205.05131)."""
    target_length: PositiveInt | None = None
    """Tokens of a T5's decoder, of which the encoder has `training.sequence_length`; default: what the objective needs,
    up to the next multiple of 8."""
    cache_dir: Text | None = None
    """Where shards that come from a URL are kept, shared by the processes of a node; default: `bigtrain` in the user's
    cache folder."""
    cache_bytes: PositiveInt = 2**36
    """About how much is kept there; what was not used for longest goes first."""


class ParallelConfig(Section):
    """How the work is split. Data parallel is what remains of the world."""

    tensor: PositiveInt = 1
    """Processes that share each layer's matrices (Megatron-LM, arXiv:1909.08053)."""
    pipeline: PositiveInt = 1
    """Processes that share the layers (1F1B, arXiv:2104.04473)."""
    virtual_pipeline: PositiveInt = 1
    """Chunks of layers per pipeline stage; above 1 the schedule is interleaved."""
    layers_per_stage: list[PositiveInt] | None = None
    """Layers of each chunk in the order of the model, a T5's encoder before its decoder: one number a stage, or with
    `virtual_pipeline` chunk 0 of every stage, then chunk 1 of every stage; default: balanced by FLOPs, the output layer
    counted in the last."""
    sequence: bool = False
    """Split the norms and dropouts along the sequence over the tensor group (arXiv:2205.05198);
    says nothing where `tensor` is 1."""
    context: PositiveInt = 1
    """Processes that share each sequence. For attention they exchange heads (Ulysses,
    arXiv:2309.14509) where the heads of a process divide, else send keys and values around a ring
    (arXiv:2310.01889)."""
    expert: PositiveInt = 1
    """Processes that share the experts of each layer, out of the tensor x context x data ones of a stage;
    tokens travel to their experts and back (GShard, arXiv:2006.16668)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is split over the processes of data and context parallel together (ZeRO,
    arXiv:1910.02054): 0 nothing, 1 the optimizer's state, 2 the gradients as well, 3 the weights as
    well."""
    offload: Literal["none", "optimizer"] = "none"
    """Keep the optimizer's state and its step on the CPU."""

    @property
    def model_parallel_size(self) -> int:
        """Processes that together work on one sample."""
        return self.tensor * self.context * self.pipeline

    @property
    def experts_lie_apart(self) -> bool:
        """Whether a layer's experts, never cut themselves, lie on other processes than the rest of the layer."""
        return self.expert > 1 or self.tensor > 1


class OptimizerConfig(Section):
    """AdamW (arXiv:1711.05101). Weight decay touches matrices only: no biases, no norms."""

    lr: PositiveFloat = 3e-4
    """The peak learning rate."""
    betas: tuple[Probability, Probability] = Field((0.9, 0.95), strict=False)  # YAML has lists, not tuples
    """Decay rates of the two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are scaled down to this global L2 norm; 0 turns clipping off."""


class ScheduleConfig(Section):
    """The learning rate over the steps: a linear warm-up, then `name`."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """`cosine` and `linear` fall to `min_lr_ratio` at the last step; `wsd` (warm-up, stable,
    decay; arXiv:2404.06395) stays at the peak and falls linearly over the last `decay_steps`."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from 0."""
    decay_steps: NonNegativeInt = 0
    """Steps of the final decay of `wsd`."""
    min_lr_ratio: Fraction = 0.1
    """The last rate, as a part of the peak."""


class TrainingConfig(Section):
    """How long, on how much at a time, and where to."""

    output_dir: Text
    """The run's folder. A run is continued by starting it again with the same folder."""
    steps: PositiveInt
    """Optimizer steps of the whole run."""
    global_batch_size: PositiveInt
    """Sequences per optimizer step, over all processes."""
    micro_batch_size: PositiveInt = 1
    """Sequences per forward pass of one process."""
    sequence_length: PositiveInt
    """Tokens per sequence."""
    seed: NonNegativeInt = 1234
    """Decides the initial weights, the order of the data and the dropout."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of weights and activations; with `bf16` the master weights, the gradients' sum and the
    optimizer stay in float32."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Compute activations again in the backward pass: the attention's core, or whole blocks."""
    validation_interval: NonNegativeInt = 0
    """Steps between two validations; 0: only after the last step."""
    validation_samples: NonNegativeInt = 0
    """Sequences of a validation; 0: the whole set."""
    step_timeout: NonNegative = 120.0
    """Seconds after which a step or a batch of a validation counts as hung, or five times what the longest so far took,
    if that is more: every rank writes its stacks to its log, and the run ends with a fault. A start and its first step,
    and what waits for storage, have ten minutes at least. 0 turns it off."""


class CheckpointConfig(Section):
    """When the run is saved, where to, and what is kept."""

    dir: Text | None = None
    """A folder, or a URL that fsspec can write such as `s3://bucket/run` (`pip install 'bigtrain[remote]'`);
    default: `checkpoints` in the run's folder. Keys and endpoints come from the environment, as the storage's
    own tools read them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and so on."""
    interval: NonNegativeInt = 1000
    """Steps between two checkpoints; 0: only after the last step. One is written at the end."""
    async_save: bool = True
    """Training goes on while a checkpoint is written; it stops for a copy to host memory alone, which
    takes as much as this process saves. One is written at a time: a save that is due sooner waits."""
    keep_last: NonNegativeInt = 2
    """How many of the newest checkpoints are kept; 0 keeps all."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of so many steps are kept for ever, besides `keep_last`; 0: none."""
    resume: bool = True
    """Continue from the newest complete checkpoint in `dir`, if there is one."""
    initialize_from: Text | None = None
    """What a run that continues none begins with: the weights of the newest checkpoint in this folder or URL (a model
    that `bigtrain convert from-hf` made, another run's folder, or one step's), saved in any layout, or of a Hugging
    Face folder, whose shape is the model's; the optimizer and the data begin anew. Default: random weights."""


class LoggingConfig(Section):
    """What the run tells."""

    interval: PositiveInt = 1
    """Steps between two rows of `metrics.jsonl`."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; `auto` is online when you are logged in, else offline in `RUN/wandb`."""
    wandb_project: Text = "bigtrain"
    """Project the run appears under."""
    wandb_entity: Text | None = None
    """Team or user; default: W&B's own default."""
    run_name: Text | None = None
    """Name on the dashboard; default: the name of the run's folder."""


class Config(Section):
    """A whole run."""

    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    launch: LaunchConfig = LaunchConfig()
