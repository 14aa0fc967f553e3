"""Every option of the configuration is an option of the command line, with a help text, and the other way round."""

import click
import pytest

from zcluster.cli import all_commands
from zcluster.config import Config, Option, options

RUN = all_commands()["run"]


@pytest.mark.parametrize("option", list(options()), ids=lambda option: option.field)
def test_each_field_has_help_and_a_flag(option: Option):
    """A field is described in a sentence and offered by `zcluster run` under the flags it names."""
    assert option.help.endswith(".")
    assert option.help[0].isupper() or option.help.startswith("tmpfs")
    parameter = next(p for p in RUN.params if p.name == option.field)
    if option.flags:
        assert all(flag.startswith("-") for flag in option.flags)
        assert {*parameter.opts, *parameter.secondary_opts} == set(option.flags)
    else:
        assert isinstance(parameter, click.Argument)


def test_the_command_line_has_no_option_of_its_own():
    """`run` offers the fields of Config, and the file they may stand in; `check` and `config` offer the same."""
    names = [*Config.__struct_fields__, "file"]
    assert [parameter.name for parameter in RUN.params] == names
    assert [parameter.name for parameter in all_commands()["check"].params] == names
    assert [parameter.name for parameter in all_commands()["config"].params] == [*names, "as_json"]


def test_no_flag_means_two_things():
    """Every flag belongs to one option."""
    flags = [flag for parameter in RUN.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    assert len(flags) == len(set(flags))
    assert len({option.name for option in options()} | {"config"}) == len(list(options())) + 1


def test_one_name_everywhere():
    """The key in a file and the variable are the long flag."""
    for option in options():
        assert option.name == (option.flags[0].removeprefix("--") if option.flags else "app")
        assert option.variable == f"ZCLUSTER_{option.name.replace('-', '_').upper()}"


def test_what_a_reload_cannot_change():
    """What is made once, or is the name by which a cluster is found, says why it stays."""
    fixed = {option.field for option in options() if option.fixed}
    assert {"bind", "name", "run_dir", "state", "lanes", "counters", "heartbeat_s"} <= fixed
    assert not fixed & {"app", "workers", "threads", "keep_alive_s", "graceful_timeout_s", "log_level", "preload"}


def test_times_carry_their_unit():
    """Fields that are seconds say so in their names, and their flags take seconds."""
    for option in options():
        assert (option.type is float) == option.field.endswith("_s") == (option.metavar == "SECONDS"), option.field


def test_timeout_alone_means_gunicorns_default():
    """The flag needs no value; a word that follows it is taken for a number, and refused when it is none."""

    def timeout_of(*words):
        return RUN.make_context("run", list(words)).params["timeout_s"]

    assert timeout_of("app:app") is None
    assert timeout_of("app:app", "--timeout") == timeout_of("app:app", "-t", "--workers", "2") == 30
    assert timeout_of("--timeout", "7.5", "app:app") == timeout_of("app:app", "-t7.5") == 7.5
    with pytest.raises(click.BadParameter, match="'app:app' is not a number; put --timeout behind it, or write"):
        timeout_of("--timeout", "app:app")


def test_help_names_every_option():
    """`zcluster run --help` is complete."""
    with click.Context(RUN, info_name="zcluster run", **RUN.context_settings) as context:
        text = RUN.get_help(context)
    for option in options():
        assert all(flag in text for flag in option.flags)
