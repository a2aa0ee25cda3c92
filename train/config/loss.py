"""Settings of the losses: stage 1, its rows replayed in stage 2, and stage 2's contrastive term."""

from typing import Annotated, Literal

from pydantic import Field

from train.config.settings import Count, CountOrZero, Number, Settings, StrictBool, Temperature, Weight

# Two cosines differ by 2 at most: above, the loss never reaches 0.
Margin = Annotated[float, Field(strict=True, gt=0, le=2)]


class LossSettings(Settings):
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
    """Weight of the cross-entropy on the documents' own text. Our choice: 0, a pretrained model has read enough; nano
    sets it, since its reasoning recalls facts that it can only have from the documents."""
    reading_documents: Count = 8
    """Documents packed into one sequence, each twice. Our choice: 8 of nano's facts fill two thirds of its rows."""
    distill: Weight = 0.0
    """Weight of the distance to a sentence encoder's vectors and similarities (train/stage1/distillation.py). Our
    choice: 0, the paper distils nothing; it is for models that start from that encoder's weights."""
    teacher: str | None = None
    """Folder or hub id of the sentence-transformers model that `distill` aims at. Our choice: absent; a reasoned
    query's target is the vector of query and reasoning together, so that what is written matters."""
    distill_vectors: StrictBool = True
    """`distill` aims at the teacher's vectors too, not only at its similarities. Our choice: on; off for a teacher of
    another width, whose vectors have no cosine with the model's."""
    distill_direct: StrictBool = False
    """The direct vector aims at the teacher's vector of query and reasoning, and no reasoned query is trained. Our
    choice: off; it is the control that asks whether writing the reasoning adds anything to having learned from it."""
    kl_direction: Literal["forward", "reverse"] = "reverse"
    """forward: KL(base || model); reverse: KL(model || base). Open in the paper; our choice: reverse, the divergence
    that stage 2's estimator measures."""
    temperature: Temperature = 0.05
    """InfoNCE divides the cosine by it. Open in the paper; 0.05 is the scale of 20 of sentence-transformers."""
    matryoshka_dims: tuple[Count, ...] = ()
    """Beside the whole vectors, InfoNCE also compares their first dimensions, for each of these sizes, which
    must be smaller. Matryoshka, arXiv 2205.13147. Our choice: none, the paper's vectors are whole."""
    matryoshka_weights: tuple[Weight, ...] = ()
    """Weight of each size beside the whole vectors' 1. Our choice: none are given, so that each is 1, as in the paper
    of Matryoshka and in sentence-transformers."""
    margin: Margin = 0.1
    """Cosine by which the positive must beat the negative. Open in the paper; FaceNet's 0.2 (arXiv 1503.03832, 3.3) is
    on squared distances of unit vectors, 2 - 2 cos: half of it in cosines."""
    in_batch: StrictBool = True
    """The documents of other rows are negatives. Our choice: on, they cost nothing."""
    hard_negatives: StrictBool = True
    """Use a row's own negatives where it has them. Our choice: on; the paper adds 100k hard-negative triples [S]."""

    @property
    def nested(self) -> tuple[tuple[int, float], ...]:
        """Each size of `matryoshka_dims` with its weight."""
        weights = self.matryoshka_weights or (1.0,) * len(self.matryoshka_dims)
        return tuple(zip(self.matryoshka_dims, weights, strict=True))

    def check_sizes(self, dim: int) -> None:
        """Raises ValueError for a size that vectors of `dim` dimensions do not have."""
        wrong = [size for size in self.matryoshka_dims if size >= dim]
        if wrong:
            raise ValueError(
                f"matryoshka_dims = {list(self.matryoshka_dims)}: the vectors have {dim} dimensions, which are always "
                f"compared whole, and {wrong[0]} is not smaller. Leave it out."
            )

    def _check_nested(self) -> None:
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if len(set(dims)) < len(dims):
            raise ValueError(f"matryoshka_dims = {list(dims)} names a size twice. Name each once.")
        if weights and len(weights) != len(dims):
            raise ValueError(
                f"matryoshka_weights = {list(weights)} are {len(weights)} for {len(dims)} matryoshka_dims. Give one "
                "for each size, or none."
            )
        if 0 in weights:
            raise ValueError(f"matryoshka_weights = {list(weights)}: a size of weight 0 is not learned. Leave it out.")
        if dims and not self.infonce:
            raise ValueError(
                f"matryoshka_dims = {list(dims)} are sizes of InfoNCE, and infonce = 0. Set infonce, or leave them out."
            )

    def check(self) -> None:
        """Something is learned, and a contrastive term has something to contrast with."""
        self._check_nested()
        learned = self.reply or self.infonce or self.triplet or self.distill or self.reading
        if not (learned or self.kl):
            raise ValueError(
                "every weight is 0, so nothing would be learned. Set at least one of reply, infonce, triplet, distill, "
                "reading."
            )
        if not learned:
            raise ValueError(
                "only kl is above 0: it pulls the model back to its start. Set reply, infonce, triplet, distill or "
                "reading too."
            )
        if bool(self.distill) != (self.teacher is not None):
            raise ValueError(
                f"distill = {self.distill} and teacher = {self.teacher!r} belong together: a teacher is asked only "
                "where distill has a weight. Set both or neither."
            )
        if self.distill_direct and not self.distill:
            raise ValueError(
                "distill_direct = true changes what distill aims at, and distill = 0. Set distill and teacher, or "
                "leave it out."
            )
        if (self.infonce or self.triplet) and not (self.in_batch or self.hard_negatives):
            raise ValueError(
                "in_batch = false and hard_negatives = false exclude a contrastive loss: it would have no negatives "
                "and be 0. Switch one of them on, or set infonce = 0 and triplet = 0."
            )


class ReplayLossSettings(LossSettings):
    """Stage 1's losses with their weights beside the policy loss."""

    kl: Weight = 0.0
    """Our choice: 0, not used here: policy.kl_weight holds the policy near its start."""
    infonce: Weight = 0.0
    """Weight of InfoNCE over cosine. Our choice: off, the reply alone keeps the reasoning; nano sets it for vectors."""
    triplet: Weight = 0.0
    """Weight of the triplet margin loss. Our choice: off, as in nano's stage 1."""

    def check(self) -> None:
        """There is no frozen base here."""
        super().check()
        if self.kl:
            raise ValueError("replay.loss.kl has no base to stay near. Set policy.kl_weight, and kl = 0.")


class ContrastiveSettings(Settings):
    """InfoNCE of the rollouts' vectors against their documents, in the same forward as the policy loss."""

    weight: Weight = 1.0
    """Weight beside the policy loss; 0 = off. Our choice: 1."""
    temperature: Temperature = 0.05
    """InfoNCE divides the cosine by it. As in stage 1."""
    hard_negatives: CountOrZero = 8
    """Negatives per query from the cache, whose vectors are constants. Our choice: 8."""
    min_reward: Number = -1.0
    """Rollouts with a smaller reward are left out. Our choice: -1, none; with a bound, reasoning that has not found
    the document does not learn it by heart."""
