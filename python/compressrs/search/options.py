"""What a layer of a model may become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressrs._checks import number, whole
from compressrs.checkpoint.recipe import Rule
from compressrs.quantize import Scheme


@dataclass(frozen=True)
class Option:
    """What a linear layer may become. It stays as it is by default.

    Parameters
    ----------
    scheme : Scheme, optional
        Few bits, by `compressrs.quantize.gptq`.
    sparsity : float, optional
        The share of weights that `compressrs.prune.sparsegpt` removes, in [0, 1); stored in
        CSR format, or with a `scheme` as codes of 0.
    nm : pair of int, optional
        Alternatively, keep n of every m inputs; stored by `compressrs.sparse.NMMatrix`.
    rank : int, optional
        Two layers of this many features between them, the best for the calibration inputs;
        not with the others.

    Raises
    ------
    TypeError, ValueError
        If a parameter is none of these, or two do not go together.

    Examples
    --------
    >>> import compressrs as cr
    >>> cr.search.Option(cr.quantize.Scheme(bits=8), sparsity=0.5).label
    'int8 channel, 50% sparse'
    >>> cr.search.Option().label
    'dense'
    """

    scheme: Scheme | None = None
    sparsity: float | None = None
    nm: tuple[int, int] | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.scheme is not None and not isinstance(self.scheme, Scheme):
            raise TypeError(f"scheme must be a Scheme, got {type(self.scheme).__name__}")
        if self.sparsity is not None:
            number(self.sparsity, "sparsity", 0, below=1)
            if self.nm is not None:
                raise ValueError("sparsity and nm must not both be given")
        if self.nm is not None:
            if not isinstance(self.nm, Sequence) or len(self.nm) != 2:
                raise TypeError(f"nm must be a pair (n, m), got {self.nm!r}")
            n, m = whole(self.nm[0], "nm", 1), whole(self.nm[1], "nm", 1)
            if n > m:
                raise ValueError(f"nm must be (n, m) with n <= m, got {self.nm}")
            object.__setattr__(self, "nm", (n, m))
        if self.rank is not None:
            whole(self.rank, "rank", 1)
            if (self.scheme, self.sparsity, self.nm) != (None, None, None):
                raise ValueError("rank must not be given with scheme, sparsity or nm")
        if self.scheme is not None and self.scheme.dtype == "codebook" and self.prunes:
            raise ValueError("scheme must have a code for 0 where weights are removed")

    @property
    def prunes(self) -> bool:
        """Whether weights are removed."""
        return self.sparsity is not None or self.nm is not None

    @property
    def label(self) -> str:
        """The option in a few words."""
        parts = []
        if self.scheme is not None:
            name = self.scheme.dtype
            name = f"{name}{self.scheme.bits}" if name in ("int", "uint", "codebook") else name
            size = "" if self.scheme.group_size is None else f" {self.scheme.group_size}"
            parts.append(f"{name} {self.scheme.granularity}{size}")
        if self.sparsity is not None:
            parts.append(f"{self.sparsity:.0%} sparse")
        if self.nm is not None:
            parts.append(f"{self.nm[0]}:{self.nm[1]} sparse")
        if self.rank is not None:
            parts.append(f"rank {self.rank}")
        return ", ".join(parts) or "dense"


def rule_label(rule: Rule) -> str:
    """Return a rule of a checkpoint in a few words."""
    parts = []
    if rule.quantize == "codebook":
        parts.append(f"codebook {rule.entries}")
    elif rule.quantize is not None:
        group = "" if rule.group_size is None else f" g{rule.group_size}"
        method = "" if rule.method == "rtn" else f" {rule.method}"
        parts.append(f"{rule.quantize}{group}{method}")
    if rule.prune:
        parts.append(f"{rule.prune:.0%} sparse")
    if rule.pattern is not None:
        parts.append(f"{rule.pattern} sparse")
    if rule.dtype is not None:
        parts.append(rule.dtype)
    return ", ".join(parts) or "lossless"


def _group(bits: int, size: int = 32) -> Scheme:
    return Scheme(bits, granularity="group", group_size=size)


#: Options of a layer by default.
OPTIONS = (
    Option(),
    Option(Scheme(8)),
    Option(Scheme(6)),
    Option(Scheme(4)),
    *(Option(_group(bits)) for bits in (5, 4, 3, 2)),
    *(Option(sparsity=s) for s in (0.5, 0.7, 0.8, 0.9, 0.95)),
    Option(Scheme(8), sparsity=0.5),
)

#: Rules of a tensor of a checkpoint by default.
RULES = (
    Rule(),
    Rule(dtype="bfloat16"),
    *(Rule(quantize=f"int{bits}", method="mse") for bits in (8, 7, 6, 5, 4)),
    *(Rule(quantize=f"int{bits}", group_size=32, method="hqq") for bits in (5, 4, 3)),
    *(Rule(quantize="codebook", entries=n) for n in (16, 32, 64)),
)

#: Rules where there is calibration.
CALIBRATED_RULES = (
    *RULES,
    *(Rule(quantize=f"int{bits}", method="gptq") for bits in (6, 5, 4)),
    *(Rule(quantize=f"int{bits}", group_size=32, method="gptq") for bits in (4, 3)),
)
