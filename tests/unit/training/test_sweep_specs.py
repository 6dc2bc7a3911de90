"""A search space is read from flags or YAML, and whatever cannot work is refused before anything starts."""

import dataclasses
from collections.abc import Callable

import pytest

from training.config import ConfigError, RunConfig
from training.sweeping.space import Choice, Range, SearchSpace
from training.sweeping.specs import read_space

NewConfig = Callable[..., RunConfig]


def read(base: RunConfig, *flags: str) -> SearchSpace:
    return read_space(flags, None, base)


@pytest.mark.parametrize(
    ("flag", "knob", "domain"),
    [
        ("learning_rate=log:1e-4:1e-1", "learning_rate", Range(1e-4, 1e-1, is_log=True)),
        ("learning-rate=uniform:0.1:0.2", "learning_rate", Range(0.1, 0.2)),
        ("model.dropout=uniform:0:0.5:0.2", "model.dropout", Range(0.0, 0.4, step=0.2)),
        ("epochs=uniform:1:5", "epochs", Range(1, 5, is_whole=True)),
        ("epochs=uniform:2:9:3", "epochs", Range(2, 8, is_whole=True, step=3)),
        ("model.embedding_dim=log:4:64", "model.embedding_dim", Range(4, 64, is_log=True, is_whole=True)),
        ("model.hidden_units=choice:[64],[128,64]", "model.hidden_units", Choice(([64], [128, 64]))),
        ("global_batch_size=choice:1024,2048", "global_batch_size", Choice((1024, 2048))),
        ("optimizer=choice:adam,sgd", "optimizer", Choice(("adam", "sgd"))),
        ("clip_norm=choice:null,1e-1,5", "clip_norm", Choice((None, 0.1, 5))),
        ("xla=choice:true,false", "xla", Choice((True, False))),
        ("learning_rate_scaling=choice:none,linear", "learning_rate_scaling", Choice(("none", "linear"))),
    ],
)
def test_a_spec_means_numbers_of_its_knob_or_values(
    new_config: NewConfig, flag: str, knob: str, domain: Range | Choice
) -> None:
    assert read(new_config(), flag).domains == {knob: domain}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("rate", "search 'rate' is no KNOB=SPEC; use for example learning_rate=log:1e-4:1e-2"),
        ("rate=log:1:2", "search rate: there is no such knob; use a setting like model.dropout, or one of"),
        ("model=choice:1,2", "search model: there is no such knob"),
        ("model.width=choice:1,2", "model multi_field has no such setting; use ['dropout', 'embedding_dim', 'hidden_u"),
        ("learning_rate=0.1", "search learning_rate: '0.1' is no log:LOW:HIGH"),
        ("learning_rate=normal:0:1", "search learning_rate: 'normal:0:1' is no log:LOW:HIGH"),
        ("learning_rate=log:1e-4", "is no log:LOW:HIGH"),
        ("learning_rate=log:1:2:3", "is no log:LOW:HIGH"),
        ("learning_rate=log:a:2", "'log:a:2' holds what is no number"),
        ("learning_rate=uniform:0.1:inf", "with finite numbers"),
        ("learning_rate=log:0:1", "begins at 0, which has no logarithm; begin above 0"),
        ("learning_rate=uniform:2:1", "begins at 2 and ends at 1; the end must be larger"),
        ("learning_rate=uniform:1:2:5", "has the step 5; use one above 0 that fits into the range"),
        ("epochs=uniform:0.5:3", "'uniform:0.5:3' holds a fraction, but it must be a whole number"),
        ("model.hidden_units=uniform:1:2", "is a range of numbers, but it must be a list, each a whole number"),
        ("optimizer=choice:adam,adamw", "'adamw' does not fit; it must be one of ['adam', 'adagrad', 'sgd']"),
        ("epochs=choice:3,many", "'many' does not fit; it must be a whole number"),
        ("epochs=choice:3", "'choice:3' is no choice; give two values or more, each of them once"),
        ("epochs=choice:3,3", "is no choice; give two values or more, each of them once"),
        ("epochs=choice:[3", "cannot be read; write values with commas between"),
        ("sql=choice:a,b", "search sql: it cannot be searched, all trials train on one dataset"),
        ("monitor=choice:val_auc,val_loss", "search monitor: it cannot be searched, trials are compared by it"),
        ("output=choice:a,b", "search output: it cannot be searched, it says where and how the command runs"),
        ("max_restarts=choice:1,2", "search max_restarts: it cannot be searched, it says where and how"),
        ("step_limit_seconds=choice:10,20", "search step_limit_seconds: it cannot be searched, it says where and how"),
        ("run_date=choice:'2026-01-30','2026-01-31'", "search run_date: it cannot be searched, it says where and how"),
        ("warm_start=choice:a,b", "search warm_start: it cannot be searched, all trials begin from one model"),
        ("model.name=choice:multi_field,deep", "search model.name: model 'deep' is unknown"),
        (
            "model.name=choice:multi_field,two_tower",
            "the value 'two_tower' cannot work: monitor 'val_auc' is no",
        ),
        ("model.dropout=uniform:0:1", "the value 1.0 cannot work: model setting dropout is 1.0; use a share from 0"),
        ("workers=choice:1,3", "the value 3 cannot work: global_batch_size 2048 does not divide among 3 workers"),
        ("epochs=uniform:0:3", "the value 0 cannot work: epochs is 0; use 1 or more"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_knob_and_the_mend(
    new_config: NewConfig, flag: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(new_config(), flag)
    assert message in str(caught.value)


def test_every_field_is_searched_or_refused_for_a_reason(new_config: NewConfig) -> None:
    for field in dataclasses.fields(RunConfig):
        with pytest.raises(ConfigError) as caught:
            read(new_config(), f"{field.name}=log:0:1")
        if field.name != "model":
            assert "there is no such knob" not in str(caught.value)


def test_a_value_may_need_its_fellows(new_config: NewConfig) -> None:
    # 3 workers do not share 2,048 rows, but they share 1,536.
    space = read(new_config(), "workers=choice:2,3", "global_batch_size=choice:1536,2048")
    assert space.configure(new_config(), {"workers": 3, "global_batch_size": 1536}).workers == 3


def test_nothing_to_search_is_refused(new_config: NewConfig) -> None:
    with pytest.raises(ConfigError, match="nothing is searched; name a knob and its values"):
        read(new_config())


def test_a_file_holds_specs_and_flags_stand_over_it(new_config: NewConfig) -> None:
    text = "learning_rate: log:1e-4:1e-2\nmodel.hidden_units: choice:[64],[128,64]\n"
    space = read_space(["learning_rate=log:1e-3:1e-2"], text, new_config())
    assert space.domains == {
        "learning_rate": Range(1e-3, 1e-2, is_log=True),
        "model.hidden_units": Choice(([64], [128, 64])),
    }


@pytest.mark.parametrize(("text", "part"), [("a: [", "is no YAML"), ("- a", "no mapping"), ("a: 3", "no mapping")])
def test_a_file_that_is_no_mapping_of_specs_is_refused(new_config: NewConfig, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_space([], text, new_config())


def test_a_space_reads_what_it_writes(new_config: NewConfig) -> None:
    flags = ["learning_rate=log:1e-4:1e-1", "model.hidden_units=choice:[64],[128,64]", "epochs=uniform:2:8:3"]
    space = read(new_config(), *flags)
    again = read(new_config(), *(f"{knob}={spec}" for knob, spec in space.to_dict().items()))
    assert again == space


def test_a_long_list_of_combinations_is_checked_in_a_moment(new_config: NewConfig) -> None:
    names = ("epochs", "seed", "patience", "warmup_steps", "local_steps")
    flags = [f"{name}=uniform:1:64" for name in names]
    flags += ["global_batch_size=choice:" + ",".join(str(256 * size) for size in range(1, 33))]
    assert len(read(new_config(), *flags).domains) == 6
