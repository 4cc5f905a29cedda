"""The run plan: every public choice of a run, as frozen values that both sides agree on.

Public: all of it. A site compares the privacy part with its own caps before it trains.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError
from common.limits import LIMITS

LARGEST = 1e6
"""Largest scale, gain, learning rate or clip; far above any use, far below an overflow."""
_SHOWN = 80
"""Longest piece of a bad value that a message repeats, characters."""


class Frozen(BaseModel):
    """A frozen value that refuses unknown keys, NaN and numbers given as text or bool."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


class RecommenderPlan(Frozen):
    """What is trained, and on which views of a subject's history."""

    backbone: str = "minilm"
    """`minilm`, a folder or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen backbone."""
    variant: Literal["ffa", "plain"] = "ffa"
    """`ffa` freezes LoRA's A at a public seed and trains B; `plain` trains both."""
    r: int = Field(default=8, ge=1, le=256)
    """Rank of LoRA."""
    lora_alpha: float = Field(default=16.0, gt=0, le=LARGEST)
    """LoRA scale is lora_alpha / r."""
    target_modules: str = "query,value"
    """Comma-separated names of the linear layers that LoRA adapts."""
    top_layers: int = Field(default=1, ge=0, le=128)
    """How many layers, counted from the top, carry LoRA; 0 leaves the text path frozen."""
    adapter_seed: int = Field(default=0, ge=-(2**40), le=2**40)
    """Public seed of the frozen A."""
    objective: Literal["ranking", "click", "rating"] = "ranking"
    windows: int = Field(default=3, ge=1, le=64)
    """Latest training targets taken from one subject."""
    text_items: int = Field(default=3, ge=1, le=64)
    """Latest items of the history that are told as text."""
    text_tokens: int = Field(default=32, ge=4, le=512)
    """Longest text of a history, tokens."""
    item_tokens: int = Field(default=64, ge=4, le=512)
    """Longest text of a catalog item, tokens."""
    history_items: int = Field(default=50, ge=1, le=1000)
    """Latest items of the history that the history path sees."""
    text_scale: float = Field(default=6.7, gt=0, le=LARGEST)
    """Inverse temperature of the text path (1 / 0.15, calibrated on public text)."""
    history_scale: float = Field(default=10.0, gt=0, le=LARGEST)
    """Gain of the history path."""
    candidates: int = Field(default=2000, ge=16, le=10**9)
    """Larger catalogs are sampled (from the public catalog) down to this many negatives."""
    parts: str = "text,gate,mixer,map,borrow,bias"
    """Comma-separated parts of the adapter that are trained; the others stay zero and silent."""
    domains: str = ""
    """`NAME:SUBJECTS` of each domain, comma-separated, by the sites' declared (public) numbers.

    The server fills it in when it knows the sites. A domain borrows from those at least as large.
    """
    share_map: bool = False
    """False: the history map stays among one domain's sites. LoRA and mixer are always shared."""
    share_bias: bool = False
    """False: the item bias goes to sites of one domain alone."""


class PrivacyPlan(Frozen):
    """The mechanism of one site, and what it may cost; give epsilon or noise_multiplier."""

    private: bool = True
    """False trains without noise, for the baseline that makes no privacy claim."""
    epsilon: float | None = Field(default=None)
    noise_multiplier: float | None = Field(default=None)
    delta: float = Field(default=1e-5)
    max_grad_norm: float = Field(default=1.0, le=LARGEST)
    sample_rate: float = Field(default=0.25, ge=1e-6, le=1)
    sampling: str = "poisson"
    """Only Poisson sampling is accounted; anything else is refused."""


class FederationPlan(Frozen):
    """Rounds, and what the server does with the updates."""

    rounds: int = Field(default=60, ge=1, le=LIMITS.rounds)
    local_steps: int = Field(default=1, ge=1, le=1000)
    """DP steps at a site in a round."""
    client_learning_rate: float = Field(default=1.0, gt=0, le=LARGEST)
    text_rounds: int = Field(default=0, ge=0, le=LIMITS.rounds)
    """LoRA is trained in the first so many rounds, then it is frozen and its output cached."""
    strategy: Literal["fedadam", "fedavgm", "fedavg", "fedyogi", "fedadam-mini"] = "fedadam-mini"
    learning_rate: float | None = Field(default=None, gt=0, le=LARGEST)
    """Server learning rate of the history map; None takes the strategy's own."""
    bias_gain: float = Field(default=5.0, gt=0, le=LARGEST)
    """Learning rate of the item bias over that of the history map."""
    text_gain: float = Field(default=1.0, gt=0, le=LARGEST)
    """Learning rate of LoRA over that of the history map."""
    mixer_gain: float = Field(default=2.0, gt=0, le=LARGEST)
    """Learning rate of the view mixer over that of the history map."""
    borrow_gain: float = Field(default=3.0, gt=0, le=LARGEST)
    """Learning rate of the borrow gates over that of the history map."""
    gate_gain: float = Field(default=5.0, gt=0, le=LARGEST)
    """Learning rate of the text gate over that of the history map."""
    shrink: str = "gate,mixer,borrow"
    """Parts whose steps are shortened by the share that the known noise explains (fedadam-mini)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    second_momentum: float = Field(default=0.99, ge=0, lt=1)
    averaging: float = Field(default=0.9, ge=0, lt=1)
    """Exponential average of the iterates that is released; 0 releases the last one."""
    aggregation: Literal[
        "auto",
        "agreement",
        "mean",
        "trimmed-mean",
        "median",
        "multi-krum",
        "geometric-median",
        "norm-bounded",
        "inverse-variance",
    ] = "auto"
    """How updates become one; auto is agreement with 2 * tolerate + 3 sites at least, else mean."""
    tolerate: int = Field(default=2, ge=0, le=LIMITS.sites)
    """Hostile sites f that a robust rule is to bear, a count."""
    lora_aggregation: Literal["mean", "svd"] = "mean"
    """Plain LoRA: mean of A and of B, or the mean of their products brought back to rank r."""
    quorum: int = Field(default=0, ge=0, le=LIMITS.sites)
    """Fewest answers of a round; 0 takes half of the sites, and 2f + 1 where a robust rule is."""
    attempts: int = Field(default=3, ge=1, le=100)
    """How often a round that misses its quorum is asked again before the run stops."""
    suspend_after: int = Field(default=3, ge=1, le=10**6)
    """Inadmissible answers after which a site is left out of the rest of the run."""
    round_timeout: float = Field(default=3600.0, gt=0, le=1e9)
    """Seconds until a round closes; also the life of its messages."""
    micro_batch: int = Field(default=256, ge=1, le=10**9)
    """Subjects held in memory at once; changes no result beyond rounding."""


class EvaluationPlan(Frozen):
    """Federated evaluation: each site sends noised sums over its subjects' last items."""

    every: int = Field(default=0, ge=0, le=LIMITS.rounds)
    """Rounds between two evaluations; 0 for none. The last item of a subject is then held out."""
    noise_multiplier: float = Field(default=20.0, gt=0, le=LARGEST)
    """Noise over the length of one subject's three figures; its cost is part of epsilon."""


def require_text_layers(recommender: RecommenderPlan, federation: FederationPlan) -> None:
    """Refuse rounds of text training without a layer to train.

    Raises:
        ValueError: for a model's validator, which gives it the key's name.
    """
    if recommender.top_layers == 0 and federation.text_rounds > 0:
        raise ValueError(
            "expected recommender.top_layers of 1 or more with federation.text_rounds above 0, "
            "got 0"
        )


class RunPlan(Frozen):
    """Everything that sites and server agree on before round 1."""

    seed: int = Field(default=1, ge=-(2**40), le=2**40)
    """Public seed of initial values and candidate samples; never of noise at a site."""
    recommender: RecommenderPlan = RecommenderPlan()
    privacy: PrivacyPlan = PrivacyPlan(epsilon=4.0)
    federation: FederationPlan = FederationPlan()
    evaluation: EvaluationPlan = EvaluationPlan()

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        require_text_layers(self.recommender, self.federation)
        return self

    def to_json(self) -> str:
        """Canonical JSON, the same bytes for the same plan."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def with_domains(self, sizes: Mapping[str, int]) -> "RunPlan":
        """The plan for a consortium of these domains with so many declared subjects each."""
        named = ",".join(f"{domain}:{sizes[domain]}" for domain in sorted(sizes))
        recommender = self.recommender.model_copy(update={"domains": named})
        return self.model_copy(update={"recommender": recommender})

    @property
    def steps(self) -> int:
        """DP steps of a whole run at one site."""
        return self.federation.rounds * self.federation.local_steps

    @property
    def evaluations(self) -> int:
        """Federated evaluations of a whole run."""
        return self.federation.rounds // self.evaluation.every if self.evaluation.every else 0


def parse(model: type[Frozen], values: dict[str, Any], *, where: str) -> Any:
    """Build `model` from plain values.

    Raises:
        ConfigError: one line that names the key, what was expected and what was found.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, model, where)) from None


def plan_from_json(text: str) -> RunPlan:
    """The plan that `RunPlan.to_json` wrote.

    Raises:
        ConfigError: not a plan.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ConfigError("Expected a run plan as JSON, got other text.") from None
    plan = parse(RunPlan, values, where="plan")
    if not isinstance(plan, RunPlan):
        raise ConfigError("Expected a run plan.")
    return plan


def _one_line(error: ValidationError, model: type[Frozen], where: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key[:_SHOWN]}; {_hint(model, path)}"
    if first["type"] == "missing":
        return f"{where}: {key}: expected a value, got none; add it."
    named = f"{where}: {key}" if key else where
    return f"{named}: {_expected(first['msg'])}{_got(first.get('input'))}."


_WORDING = {
    "Value error, ": "",
    "Input should be": "expected",
    "String should match pattern": "expected text that matches",
    "String should have": "expected text of",
    "List should have": "expected a list of",
    " after validation": "",
}
"""The library's wording, and how every other message of ours says it."""


def _expected(message: str) -> str:
    for theirs, ours in _WORDING.items():
        message = message.replace(theirs, ours)
    return message


def _got(value: object) -> str:
    if isinstance(value, str | int | float | bool):
        shown = repr(value)
        return f", got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}"
    if isinstance(value, list | dict):
        return f", got a {'list' if isinstance(value, list) else 'table'}"
    return ""


def _hint(model: type[Frozen], path: list[str]) -> str:
    """Where the key belongs, or the key that was meant."""
    sections = [s for s, fields in _sections(model).items() if path[-1] in fields]
    if sections:
        return f"it belongs into [{sections[0]}]."
    near = difflib.get_close_matches(path[-1], _keys(model, path[:-1]), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "remove it."


def _sections(model: type[Frozen]) -> dict[str, list[str]]:
    return {name: _keys(model, [name]) for name in model.model_fields}


def _keys(model: type[Frozen], path: list[str]) -> list[str]:
    """Keys of the section at `path`; a number in it stands for an entry of a list."""
    current: Any = model
    for part in path:
        if part.isdigit():
            current = next(iter(get_args(current)), None)
        else:
            field = getattr(current, "model_fields", {}).get(part)
            current = field.annotation if field is not None else None
    return list(getattr(current, "model_fields", {}))
