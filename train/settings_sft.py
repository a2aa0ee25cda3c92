"""The configuration of stage 1, `train/sft.py`."""

from dataclasses import dataclass, field
from typing import Literal

from train.schema import Count, Positive, Settings, Weight
from train.settings import Checkpoints, Evaluate, Model, Optimization, Output
from train.settings_data import Data


@dataclass(frozen=True)
class Loss(Settings):
    """L = reply * L_SFT + kl * L_KL + infonce * L_InfoNCE + triplet * L_TripletMargin."""

    reply: Weight = 1.0
    """Weight of the cross-entropy on the reply and the embed token. 1: the paper's unit weights [S]."""
    kl: Weight = 1.0
    """Weight of the KL divergence to the frozen base on the reply tokens. 1: the paper's unit weights [S]."""
    infonce: Weight = 1.0
    """Weight of InfoNCE over cosine. 1: the paper's unit weights [S]."""
    triplet: Weight = 1.0
    """Weight of the triplet margin loss. 1: the paper's unit weights [S]."""
    reading: Weight = 0.0
    """Weight of the cross-entropy on the documents' own text. Our choice: 0, a pretrained model has read enough; nano sets it,
    since its reasoning recalls facts that it can only have from the documents."""
    reading_documents: Count = 8
    """Documents packed into one sequence that is read, each twice. Our choice: 8 of nano's facts fill two thirds of its rows."""
    distill: Weight = 0.0
    """Weight of the distance to a sentence encoder's vectors and similarities (train/distillation.py). Our choice: 0, the paper distils
    nothing; it is for models that start from that encoder's weights."""
    teacher: str | None = None
    """Folder or hub id of the sentence-transformers model whose vectors are the target of `distill`; that of a reasoned query is the
    vector of query and reasoning together. Our choice: absent."""
    kl_direction: Literal["forward", "reverse"] = "reverse"
    """forward: KL(base || model); reverse: KL(model || base). Open in the paper; our choice: reverse, the divergence that
    stage 2's estimator measures."""
    temperature: Positive = 0.05
    """InfoNCE divides the cosine by it. Open in the paper; 0.05 is the scale of 20 of sentence-transformers."""
    margin: Positive = 0.1
    """Cosine by which the positive must beat the negative. Open in the paper; FaceNet's 0.2 (arXiv 1503.03832, 3.1) is on
    squared distances of unit vectors, 2 - 2 cos: half of it in cosines."""
    in_batch: bool = True
    """The documents of other rows are negatives. Our choice: on, they cost nothing."""
    hard_negatives: bool = True
    """A row's own negatives are used where it has them. Our choice: on; the paper adds 100k hard-negative triples [S]."""

    def check(self) -> None:
        """Something is learned, and a contrastive term has something to contrast with."""
        learned = self.reply or self.infonce or self.triplet or self.distill
        if not (learned or self.kl):
            raise ValueError(
                "every weight is 0, so nothing would be learned. Set at least one of reply, infonce, triplet, distill."
            )
        if not learned:
            raise ValueError(
                "only kl is above 0: it pulls the model to where it began. Set reply, infonce, triplet or distill as well."
            )
        if bool(self.distill) != (self.teacher is not None):
            raise ValueError(
                f"distill = {self.distill} and teacher = {self.teacher!r} belong together: a teacher is asked where distill has a "
                "weight, and only there. Set both or neither."
            )
        if (self.infonce or self.triplet) and not (self.in_batch or self.hard_negatives):
            raise ValueError(
                "in_batch = false and hard_negatives = false exclude a contrastive loss: it would have no negatives and be 0. "
                "Switch one of them on, or set infonce = 0 and triplet = 0."
            )


@dataclass(frozen=True)
class SftOptimization(Optimization):
    """AdamW, and the batch that the contrastive loss sees."""

    batch_size: Count = 64
    """Rows per optimizer step over all processes. GRACE (same 1.5B backbone) uses 64."""
    mini_batch_size: Count | None = None
    """Rows per forward (GradCache, arXiv 2101.06983): memory follows it, the loss does not. Our choice: absent, all at once."""

    def check(self) -> None:
        """The part fits into the whole."""
        super().check()
        if self.mini_batch_size is not None and self.mini_batch_size > self.batch_size:
            raise ValueError(
                f"mini_batch_size = {self.mini_batch_size} is larger than batch_size = {self.batch_size}, of which it is a "
                "part. Lower it, or remove it to run the batch at once."
            )


@dataclass(frozen=True)
class SftOutput(Output):
    """Where the run writes."""

    folder: str = "runs/sft"
    """Log, checkpoints and exported models, relative to the working directory. Our choice: runs/ is ignored by git."""


@dataclass(frozen=True)
class SftConfig(Settings):
    """One supervised run."""

    model: Model
    """What is trained."""
    data: Data
    """What it is trained on."""
    loss: Loss = field(default_factory=Loss)
    """The four terms."""
    optimization: SftOptimization = field(default_factory=SftOptimization)
    """AdamW and its schedule."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Evaluation during the run."""
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    """What a killed run resumes from."""
    output: SftOutput = field(default_factory=SftOutput)
    """Where the run writes."""

    def check(self) -> None:
        """Rules between sections."""
        check_precision(self.model, self.optimization)
        if self.loss.kl and self.model.scratch is not None:
            raise ValueError(
                "loss.kl and model.scratch exclude each other: the frozen base has random weights, and staying near noise is "
                "no use. Set loss.kl = 0."
            )
        contrastive = self.loss.infonce or self.loss.triplet
        if contrastive and not self.loss.in_batch and self.data.hard_negatives == 0:
            raise ValueError(
                "loss.in_batch = false needs hard negatives, but data.hard_negatives = 0: no negatives would be left. Set "
                "data.hard_negatives, or loss.in_batch = true."
            )
        if contrastive and self.loss.in_batch and self.data.hard_negatives == 0 and self.optimization.batch_size == 1:
            raise ValueError(
                "optimization.batch_size = 1 has no in-batch negatives, and data.hard_negatives = 0: the contrastive loss "
                "would be 0. Raise one of them."
            )
        if self.data.hard_negatives and not self.loss.hard_negatives:
            raise ValueError(
                f"data.hard_negatives = {self.data.hard_negatives} are read but loss.hard_negatives = false ignores them. Set "
                "data.hard_negatives = 0 as well, or switch the loss on."
            )


def check_precision(model: Model, optimization: Optimization) -> None:
    """bf16 compute over bf16 weights is one setting said twice, with the worse half winning."""
    if optimization.mixed_precision == "bf16" and model.dtype == "bfloat16":
        raise ValueError(
            'optimization.mixed_precision = "bf16" keeps float32 weights and computes in bf16, which model.dtype = "bfloat16" '
            'excludes: small updates would be rounded away. Set model.dtype = "float32", or mixed_precision = "no".'
        )
