"""The bad-input list through `confed simulate`: one line, exit 2 or 3, and nothing begun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.cli import main
from tests.common.test_data_commands import BAD, ITEMS, MARKER, interactions
from tests.models import write_backbone

SITE = '[[domains]]\nname = "care"\nsites = 1\nsubjects = 40\n'


@pytest.fixture
def simulate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run the command, hold every promise about a refusal, and return exit status and message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFED_CACHE", str(tmp_path / "cache"))

    def run(*words: str | Path, out: str = "out") -> tuple[int, str]:
        before, _ = set(tmp_path.rglob("*")), capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["simulate", *map(str, words), "--out", out])
        shown = capsys.readouterr()
        refused(int(stopped.value.code or 0), shown.out, shown.err)
        # Neither results nor activations: it was refused before any text was encoded.
        assert set(tmp_path.rglob("*")) == before
        return int(stopped.value.code or 0), shown.err

    return run


def refused(status: int, out: str, err: str) -> None:
    assert status in (2, 3), err
    assert out == ""
    assert err.startswith("confed: ")
    assert err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert MARKER not in err


def scenario(folder: Path, content: str, *, base: str = SITE) -> Path:
    path = folder / "mine.toml"
    path.write_text(base + content)
    return path


PRIVACY: list[tuple[str, int, str]] = [
    ("epsilon = 0", 2, "epsilon to be finite and above 0, got 0.0"),
    ("epsilon = -1.0", 2, "above 0, got -1.0"),
    ("epsilon = nan", 2, "privacy.epsilon: expected a finite number, got nan"),
    ("epsilon = inf", 2, "privacy.epsilon: expected a finite number, got inf"),
    ("epsilon = true", 2, "privacy.epsilon: expected a valid number, got True"),
    ('epsilon = "4"', 2, "privacy.epsilon: expected a valid number, got '4'"),
    ("epsilon = [4.0]", 2, "privacy.epsilon: expected a valid number, got a list"),
    ("epsilon = {low = 1.0}", 2, "privacy.epsilon: expected a valid number, got a table"),
    ("epsilon = 1e-300", 2, "epsilon"),
    ("epsilon = 4.0\ndelta = 0.0", 2, "delta in [1e-12, 1), got 0.0"),
    ("epsilon = 4.0\ndelta = 1.0", 2, "delta in [1e-12, 1), got 1.0"),
    ("epsilon = 4.0\ndelta = nan", 2, "privacy.delta"),
    ("epsilon = 4.0\ndelta = true", 2, "privacy.delta"),
    ("epsilon = 4.0\ndelta = 0.025", 3, "delta below 1 / subjects, got 0.025"),
    ("noise_multiplier = 0", 3, "noise_multiplier above 0 with privacy on, got 0"),
    ("noise_multiplier = -1.0", 2, "noise_multiplier"),
    ("noise_multiplier = inf", 2, "privacy.noise_multiplier: expected a finite number"),
    ("noise_multiplier = true", 2, "privacy.noise_multiplier: expected a valid number, got True"),
    ("epsilon = 4.0\nnoise_multiplier = 9.0", 2, "noise_multiplier and epsilon to agree, got 9.0"),
    ("delta = 1e-6", 2, "epsilon or noise_multiplier, got neither"),
    ("epsilon = 4.0\nmax_grad_norm = 0.0", 2, "max_grad_norm to be finite and above 0, got 0.0"),
    ("epsilon = 4.0\nmax_grad_norm = -1.0", 2, "max_grad_norm"),
    ("epsilon = 4.0\nmax_grad_norm = inf", 2, "privacy.max_grad_norm: expected a finite number"),
    ("epsilon = 4.0\nmax_grad_norm = 1e300", 2, "privacy.max_grad_norm: expected less than"),
    ("epsilon = 4.0\nsample_rate = 0.0", 2, "privacy.sample_rate: expected greater than"),
    ("epsilon = 4.0\nsample_rate = 1e-300", 2, "privacy.sample_rate: expected greater than"),
    ("epsilon = 4.0\nsample_rate = 1.5", 2, "less than or equal to 1, got 1.5"),
    ('epsilon = 4.0\nsampling = "shuffle"', 2, "sampling 'poisson', got 'shuffle'"),
    ("epsilom = 4.0", 2, "unknown key privacy.epsilom; did you mean epsilon?"),
    ('private = "no"', 2, "privacy.private: expected a valid boolean, got 'no'"),
    ("epsilon = 4.0\nrounds = 3", 2, "privacy.rounds; it belongs into [federation]"),
]


@pytest.mark.parametrize(("content", "status", "says"), PRIVACY, ids=[c for c, _, _ in PRIVACY])
def test_a_wrong_privacy_value_is_refused_before_any_text_is_encoded(
    simulate: Callable[..., tuple[int, str]],
    tmp_path: Path,
    content: str,
    status: int,
    says: str,
) -> None:
    found, message = simulate(scenario(tmp_path, f"[privacy]\n{content}\n"))
    assert found == status, message
    assert says in message


PLAN: list[tuple[str, str]] = [
    ("[federation]\nrounds = 0", "federation.rounds: expected greater than or equal to 1, got 0"),
    ("[federation]\nrounds = 10001", "less than or equal to 10000, got 10001"),
    ("[federation]\nrounds = 2.5", "federation.rounds: expected a valid integer, got 2.5"),
    ("[federation]\nrounds = true", "federation.rounds: expected a valid integer, got True"),
    ("[federation]\nround = 3", "unknown key federation.round; did you mean rounds?"),
    ('[federation]\nstrategy = "krum"', "got 'krum'"),
    ("[federation]\nsecure_aggregation = true", "unknown key federation.secure_aggregation"),
    ('[federation]\nrobust_rule = "bulyan"', "unknown key federation.robust_rule"),
    ("[federation]\nmomentum = 1.0", "federation.momentum: expected less than 1, got 1.0"),
    ("[privcy]\nepsilon = 4.0", "unknown key privcy; did you mean privacy?"),
    ("[recommender]\nr = 0", "recommender.r: expected greater than or equal to 1, got 0"),
    ('[recommender]\nobjective = "regression"', "got 'regression'"),
    ('[recommender]\nparts = "text,nothing"', "parts among"),
    ('[recommender]\nparts = ""', "parts among"),
    ('[federation]\nshrink = "gate,nothing"', "shrink to name parts among"),
    ("[recommender]\nadapter_seed = 9999999999999999999999", "recommender.adapter_seed: expected"),
    ("[recommender]\ntext_scale = 1e300", "less than or equal to 1000000, got 1e+300"),
    ("[recommender]\nlora_alpha = 1e300", "less than or equal to 1000000, got 1e+300"),
    ("[federation]\nclient_learning_rate = 1e300", "federation.client_learning_rate: expected"),
    ("[federation]\ntext_rounds = 99999999999999999999", "federation.text_rounds: expected"),
    (
        "[recommender]\ntop_layers = 0\n[federation]\ntext_rounds = 1",
        "recommender.top_layers of 1 or more with federation.text_rounds above 0, got 0",
    ),
    ("[[domains]]\nname = 'care'", "domains of different names, got care twice"),
    ("[[domains]]\nname = '../x'", "domains.1.name: expected text that matches"),
    ("[[domains]]\nname = 'Care Home'", "domains.1.name"),
    ("[[domains]]\nname = 'bank'\nsites = 0", "domains.1.sites: expected greater than or equal"),
    ("[[domains]]\nname = 'bank'\nsite = 2", "unknown key domains.1.site; did you mean sites?"),
    ("[[domains]]\nsites = 2", "domains.1.name: expected a value, got none; add it"),
    ("[[domains]]\nname = 'movies'", "--data DIR with the records of domain movies, got none"),
    ("[[domains]]\nname = 'bank'\ndata = 'berka'", "--data DIR with the records of domain bank"),
    ("[[domains]]\nname = 'bank'\ncolumn = 'region'", "no subject column with synthetic records"),
    ("a = [", "mine.toml: expected TOML"),
    ("x = " + "[" * 20_000, "mine.toml: expected TOML"),
    ("sites = 1\nsites = 2", "mine.toml: expected TOML"),
]


@pytest.mark.parametrize(("content", "says"), PLAN, ids=[c[:60] for c, _ in PLAN])
def test_a_wrong_scenario_is_refused_by_the_name_of_its_key(
    simulate: Callable[..., tuple[int, str]], tmp_path: Path, content: str, says: str
) -> None:
    status, message = simulate(scenario(tmp_path, f"{content}\n"))
    assert status == 2
    assert says in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "domains: expected a value, got none; add it"),
        (b"domains = []", "domains: expected a list of at least 1 item"),
        (b"\xff\xfe\x00", "expected TOML in UTF-8, got other bytes"),
        (b"seed = -1\n" + SITE.encode(), "seed: expected greater than or equal to 0, got -1"),
        (b"seed = 9" + b"9" * 40 + b"\n" + SITE.encode(), "seed: expected less than or equal"),
        (b"epsilon = 4.0\n" + SITE.encode(), "unknown key epsilon; it belongs into [privacy]"),
    ],
    ids=["empty", "no domains", "not UTF-8", "negative seed", "huge seed", "key of a section"],
)
def test_a_file_that_is_no_scenario_is_refused(
    simulate: Callable[..., tuple[int, str]], tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    status, message = simulate("mine.toml")
    assert status == 2
    assert says in message


WORDS: list[tuple[list[str], str]] = [
    (["care-and-bnk"], "did you mean care-and-bank?"),
    (["nope.toml"], "Expected a scenario file at nope.toml, found none"),
    (["diabetes130"], "--data DIR with the records of domain care, got none"),
    (["care-and-bank-real"], "--data DIR with the records of domain care, got none"),
    (["--baselines", "sasrek"], "got 'sasrek'"),
    (["--baselines", ""], "got ''"),
    (["--baselines", "local,"], "got ''"),
    (["--engine", "ray"], "'ray' is not one of 'in-process', 'flower'"),
    (["--rounds", "0"], "federation.rounds: expected greater than or equal to 1, got 0"),
    (["--rounds", "-3"], "got -3"),
    (["--rounds", "x"], "'x' is not a valid integer"),
    (["--sites", "0"], "sites: expected greater than or equal to 1, got 0"),
    (["--sites", "1.5"], "'1.5' is not a valid integer"),
    (["--epsilon", "nan"], "privacy.epsilon: expected a finite number, got nan"),
    (["--epsilon", "inf"], "privacy.epsilon: expected a finite number, got inf"),
    (["--epsilon", "0"], "epsilon to be finite and above 0, got 0.0"),
    (["--epsilon", "four"], "'four' is not a valid float"),
    (["--seed", "-1"], "seed: expected greater than or equal to 0, got -1"),
    (["--seed", "x"], "'x' is not a valid integer"),
    (["--site-column", "region"], "no subject column with synthetic records, got region"),
    (["care-and-bank", "second"], "unexpected extra argument (second)"),
    (["--epsilom", "4"], "Did you mean '--epsilon'?"),
    (["--log", "wandb"], "'wandb' is not one of 'tensorboard', 'mlflow'"),
    (["--data", "nowhere"], "Expected a folder at --data, found none at nowhere"),
    (["--data", "."], "Expected items.csv, items.csv.gz or items.parquet"),
    (["care-and-bank", "--data", "."], "Expected a folder care with the records of domain care"),
    (["food-kitchen", "--data", "."], "Expected a folder amazon_food"),
]


@pytest.mark.parametrize(("words", "says"), WORDS, ids=[" ".join(w) for w, _ in WORDS])
def test_a_wrong_word_on_the_command_line_is_refused(
    simulate: Callable[..., tuple[int, str]], words: list[str], says: str
) -> None:
    status, message = simulate(*words)
    assert status == 2
    assert says in message


def test_an_option_without_its_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "--epsilon"])
    shown = capsys.readouterr()
    refused(int(stopped.value.code or 0), shown.out, shown.err)
    assert "Option '--epsilon' requires an argument. See `confed" in shown.err


def test_a_folder_for_results_that_is_a_file_is_refused(
    simulate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    mine = scenario(tmp_path, "")
    assert "taken" in simulate(mine, out="taken")[1]
    assert "give another folder" in simulate(mine, out="taken/below")[1]
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A data folder of 30 subjects and 10 items."""
    folder = tmp_path / "data" / "site"
    folder.mkdir(parents=True)
    (folder / "items.csv").write_text(ITEMS)
    (folder / "interactions.csv").write_text(interactions())
    return folder


@pytest.mark.parametrize(
    ("damage", "status", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_damaged_data_are_refused(
    simulate: Callable[..., tuple[int, str]],
    records: Path,
    damage: Callable[[Path], None],
    status: int,
    says: str,
) -> None:
    damage(records)
    found, message = simulate("--data", records, "--sites", "1")
    assert found == status
    assert says in message


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--sites", "2"], 3, "at least 20 subjects at a site, got fewer"),
        (["--sites", "31"], 2, "Expected subjects for 31 sites in domain records, got none for"),
        (["--site-column", "region"], 2, "expected one of the subject columns none; got another"),
    ],
    ids=["below the floor", "more sites than subjects", "no such column"],
)
def test_a_split_that_the_data_do_not_bear_is_refused(
    simulate: Callable[..., tuple[int, str]],
    records: Path,
    words: list[str],
    status: int,
    says: str,
) -> None:
    found, message = simulate("--data", records, *words)
    assert found == status
    assert says in message


def test_a_delta_above_one_over_the_subjects_of_a_file_is_refused(
    simulate: Callable[..., tuple[int, str]], records: Path, tmp_path: Path
) -> None:
    content = "[privacy]\nepsilon = 4.0\ndelta = 0.04\n"
    mine = scenario(tmp_path, content, base=SITE.replace("care", "records"))
    found, message = simulate(mine, "--data", records)
    assert found == 3
    assert "delta below 1 / subjects" in message
    assert "30" not in message


def test_a_delta_above_one_over_everybody_is_refused_for_the_central_baseline_alone(
    simulate: Callable[..., tuple[int, str]], records: Path, tmp_path: Path
) -> None:
    (records / "interactions.csv").write_text(
        interactions(*[f"x{n},i{k},1.0,{k}" for n in range(30) for k in range(3)])
    )
    content = "[privacy]\nepsilon = 4.0\ndelta = 0.02\n"
    mine = scenario(tmp_path, content, base='[[domains]]\nname = "records"\nsites = 2\n')
    found, message = simulate(mine, "--data", records)
    assert found == 3
    assert "for the central baseline, got 0.02" in message


@pytest.mark.parametrize("name", ["../site", "a/b", "..", "site/../../x"])
def test_a_folder_name_that_leaves_the_data_folder_is_refused(
    simulate: Callable[..., tuple[int, str]], records: Path, tmp_path: Path, name: str
) -> None:
    mine = scenario(tmp_path, "", base=SITE + f'data = "{name}"\n')
    found, message = simulate(mine, "--data", records.parent)
    assert found == 3
    assert "one plain folder name" in message


def test_a_linked_domain_folder_is_refused(
    simulate: Callable[..., tuple[int, str]], records: Path, tmp_path: Path
) -> None:
    (records.parent / "link").symlink_to(records)
    mine = scenario(tmp_path, "", base=SITE + 'data = "link"\n')
    found, message = simulate(mine, "--data", records.parent)
    assert found == 3
    assert "symbolic link" in message


def test_one_missing_folder_of_several_domains_is_named_before_anything_is_read(
    simulate: Callable[..., tuple[int, str]], records: Path, tmp_path: Path
) -> None:
    (records / "interactions.csv").write_text("damaged")
    mine = scenario(tmp_path, '[[domains]]\nname = "shop"\n', base=SITE + 'data = "site"\n')
    found, message = simulate(mine, "--data", records.parent)
    assert found == 2
    assert "Expected a folder shop with the records of domain shop" in message


def backbone(folder: Path, content: str, **changed: object) -> str:
    plain = {"dtype": "float32", "backbone": str(folder), **changed}
    lines = [f"{key} = {value!r}" for key, value in plain.items()]
    return "\n".join(["[recommender]", *lines, content, "[federation]", "text_rounds = 1", ""])


MODEL: list[tuple[dict[str, object], str]] = [
    ({"target_modules": "nonsense"}, "linear layers named nonsense"),
    ({"target_modules": "query,nonsense"}, "got 'nonsense', which names none"),
    ({"target_modules": ""}, "linear layers named"),
    ({"target_modules": "LayerNorm"}, "LayerNorm"),
    ({"top_layers": 4}, "top_layers of at most 3 for backbone"),
    ({"text_tokens": 65}, "text_tokens of at most 64 for backbone"),
    ({"item_tokens": 65, "text_tokens": 32}, "item_tokens of at most 64 for backbone"),
]


@pytest.mark.parametrize(("changed", "says"), MODEL, ids=[str(c) for c, _ in MODEL])
def test_what_a_backbone_has_not_is_refused_before_any_text_is_encoded(
    simulate: Callable[..., tuple[int, str]],
    tmp_path: Path,
    changed: dict[str, object],
    says: str,
) -> None:
    folder = write_backbone("bert", tmp_path / "data" / "bert")
    plain: dict[str, object] = {"item_tokens": 32, **changed}
    found, message = simulate(scenario(tmp_path, backbone(folder, "", **plain)))
    assert found == 2
    assert says in message


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no such model", "", "data/empty"])
def test_a_backbone_that_is_not_there_is_refused(
    simulate: Callable[..., tuple[int, str]],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data" / "empty").mkdir(parents=True)
    found, message = simulate(scenario(tmp_path, f'[recommender]\nbackbone = "{name}"\n'))
    assert found == 2
    assert "Expected a backbone" in message


def test_a_pickled_backbone_is_refused_and_never_opened(
    simulate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = write_backbone("bert", tmp_path / "data" / "bert")
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "data" / "opened"
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % bytes(trap))
    found, message = simulate(scenario(tmp_path, backbone(folder, "")))
    assert found == 3
    assert "pickle" in message
    assert not trap.exists()


def test_a_truncated_backbone_is_refused(
    simulate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = write_backbone("bert", tmp_path / "data" / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found, message = simulate(scenario(tmp_path, backbone(folder, "")))
    assert found == 2
    assert "Expected a Hugging Face encoder or decoder" in message


def test_a_model_of_an_unknown_kind_is_refused(
    simulate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = write_backbone("bert", tmp_path / "data" / "bert")
    (folder / "config.json").write_text('{"model_type": "cnn"}')
    found, message = simulate(scenario(tmp_path, backbone(folder, "")))
    assert found == 2
    assert "Expected a Hugging Face encoder or decoder" in message


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--epsilon", "-2"], 2, "above 0, got -2.0"),
        (["mine.toml"], 3, "noise_multiplier above 0 with privacy on, got 0"),
    ],
    ids=["option", "privacy"],
)
def test_a_real_process_ends_the_same_way(
    tmp_path: Path, words: list[str], status: int, says: str
) -> None:
    scenario(tmp_path, "[privacy]\nnoise_multiplier = 0.0\n")
    ended = subprocess.run(
        [sys.executable, "-m", "common.cli", "simulate", *words],
        cwd=tmp_path,
        env={**os.environ, "CONFED_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status
    refused(ended.returncode, ended.stdout, ended.stderr)
    assert says in ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]
