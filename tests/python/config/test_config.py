"""Flags, environment and bounds of the settings."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from minisgl.config import ServerArgs, parse_address
from minisgl.distributed import DistributedInfo
from minisgl.environment import default_cache_dir
from minisgl.flags import mistyped_variables, parse_args


def refusal(capsys: pytest.CaptureFixture[str], *argv: str, **environment: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse_args(argv, environment)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_nothing_given_is_the_defaults() -> None:
    assert parse_args([], {}) == ServerArgs()


def test_flags_come_before_the_environment_and_that_before_defaults() -> None:
    environment = {"MINISGL_PORT": "9000", "MINISGL_HOST": "::1", "MINISGL_THREADS": ""}
    args = parse_args(["--port", "9001"], environment)
    assert (args.port, args.host, args.num_threads) == (9001, "::1", 0)


def test_replicas_have_two_names() -> None:
    assert (
        parse_args(["--dp", "3"], {}).replicas == parse_args(["--replicas", "3"], {}).replicas == 3
    )
    assert parse_args([], {"MINISGL_REPLICAS": "2"}).replicas == 2


def test_the_model_may_be_named_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_args(["org/name"], {}).model == "org/name"
    assert parse_args(["--model", "org/name"], {}).model == "org/name"
    assert parse_args([], {"MINISGL_MODEL": "org/name"}).model == "org/name"
    assert "twice" in refusal(capsys, "a", "--model", "b")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("4096", 4096), ("64K", 65536), ("1m", 2**20), (" 2G", 2**31)]
)
def test_counts_take_suffixes(text: str, value: int) -> None:
    flags = ["--max-body-bytes", text] if value else ["--kv-cache-tokens", text]
    args = parse_args(flags, {})
    assert (args.max_body_bytes if value else args.kv_cache_tokens) == value


@pytest.mark.parametrize(
    "text", ["", "K", "-", "1.5", "1e3", "64KB", "64\N{KELVIN SIGN}", "٣", "9" * 30]
)
def test_what_is_no_count_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "expected a whole number" in refusal(capsys, f"--kv-cache-tokens={text}")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--port", "70000"), "--port must be between 0 and 65535, got 70000"),
        (("--threads", "5000"), "--threads must be between 0 and 1024, got 5000"),
        (
            ("--kv-dtype", "int3"),
            "--kv-dtype must be one of auto, f32, f16, bf16, int8, fp8, got 'int3'",
        ),
        (("--log-level", "loud"), "--log-level must be one of"),
        (("--drain-timeout", "-1"), "--drain-timeout must be between 0 and 86400, got -1.0"),
        (("--startup-timeout", "nan"), "expected a number, got 'nan'"),
        (("--page-size", "12"), "--page-size must be a power of two, got 12"),
        (("--tp", "0"), "argument --tp: expected at least 1 rank, got '0'"),
        (("--tp", "two"), "argument --tp: expected a whole number such as 4096 or 64K, got 'two'"),
        (("--tp", "2K"), "--tp must have at most 1024 ranks, got 2048"),
        (("--tp", "3", "--nnodes", "2"), "--tp must have a multiple of --nnodes (2) ranks, got 3"),
        (("--dp", "2", "--nnodes", "2", "--tp", "2"), "--replicas must be 1 where --nnodes is"),
        (("--dp", "512", "--tp", "4"), "--replicas must have at most 1024 ranks together, got 512"),
        (("--admin-api-key", " x"), "--admin-api-key must not begin or end with a space"),
        (("--max-running", "0"), "--max-running must be between 1 and 65536, got 0"),
        (("--max-body", "1K"), "unrecognized arguments: --max-body"),
        (("--modle=m",), "unrecognized arguments: --modle=m (--modle may be --model)"),
        (("--threads", "-1"), "--threads must be between 0 and 1024, got -1"),
        (("--tp", "-1"), "argument --tp: expected at least 1 rank, got '-1'"),
        (
            ("--max-replicas=3", "--min-replicas=2"),
            "--replicas must be between --min-replicas (2) and --max-replicas (3), got 1",
        ),
        (("--join", "10.0.0.1:5000"), "--dist-secret must be given where --join is given"),
        (("--dist-init-addr", "10.0.0.1:5000"), "--dist-init-addr needs --nnodes"),
        (("--host", ""), "--host must not be empty"),
        (("--max-body-bytes", "0"), "must be between 1024 and 1099511627776, got 0"),
        (("--body-timeout", "0"), "--body-timeout must be between 0.1 and 86400, got 0.0"),
        (("--max-model-len", "1"), "--max-model-len must be 0 or at least 2, got 1"),
        (("--num-pages=1", "--page-size=1"), "--num-pages must be 0 or at least 2 where --page"),
    ],
)
def test_a_bad_value_is_one_sentence(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refusal(capsys, *flags)


def test_a_text_is_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    """Other bytes of the system's arrive as halves of surrogate pairs."""
    texts = [
        field
        for field in fields(ServerArgs)
        if field.metadata and isinstance(field.default, (str, tuple, type(None)))
    ]
    assert len(texts) > 10
    for field in texts:
        name = field.name.replace("_", "-")
        sentence = refusal(capsys, f"--{name}=a\udcff", "--model=m" if name != "model" else "--")
        variable = "MINISGL_" + field.name.upper()
        of_variable = refusal(capsys, **{variable: "a\udcff"})
        got = "" if not field.repr else ", got 'a\\udcff'"
        assert sentence.endswith(f"--{name} must be UTF-8{got}")
        assert of_variable.endswith(f"{variable}: must be UTF-8{got}")


def test_an_empty_variable_is_an_empty_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_args([], {"MINISGL_METRICS_ALIAS_PREFIX": ""}).metrics_alias_prefix == ""
    assert parse_args([], {"MINISGL_METRICS_ALIAS_PREFIX": "x"}).metrics_alias_prefix == "x"
    assert "MINISGL_API_KEY: must not be empty" in refusal(capsys, MINISGL_API_KEY="")
    assert "MINISGL_HOST: must not be empty" in refusal(capsys, MINISGL_HOST="")


def test_an_empty_variable_is_no_number_switch_or_choice() -> None:
    for name in ("PORT", "BODY_TIMEOUT", "DISABLE_OVERLAP", "KV_DTYPE", "LOG_LEVEL"):
        assert parse_args([], {f"MINISGL_{name}": ""}) == ServerArgs()


@pytest.mark.parametrize("name", ["model", "revision", "chat-template", "dist-init-addr"])
def test_an_empty_name_is_none(name: str) -> None:
    assert parse_args([f"--{name}", ""], {}) == ServerArgs()
    variable = "MINISGL_" + name.replace("-", "_").upper()
    assert parse_args([], {variable: ""}) == ServerArgs()
    field = name.replace("-", "_")
    assert getattr(parse_args([f"--{name}", ""], {variable: "x"}), field) is None
    assert parse_args([""], {}) == ServerArgs()


@pytest.mark.parametrize(
    "argv",
    [
        "--model m --served-model-name a b",
        "m --served-model-name a b",
        "m --served-model-name a --served-model-name b",
        "--served-model-name a --served-model-name b -- m",
        "m --served-model-name a b --served-model-name a",
    ],
)
def test_an_option_may_have_several_values(argv: str) -> None:
    args = parse_args(argv.split(), {})
    assert (args.model, args.served_model_name) == ("m", ("a", "b"))


def test_an_option_with_one_value_or_none() -> None:
    assert parse_args(["--served-model-name", "a"], {}).served_model_name == ("a",)
    for argv in ([], ["--served-model-name", ""]):
        assert parse_args(argv, {"MINISGL_SERVED_MODEL_NAME": ""}).served_model_name == ()
    assert parse_args([], {"MINISGL_SERVED_MODEL_NAME": "a,b"}).served_model_name == ("a", "b")


def test_a_model_behind_several_values_is_no_silent_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sentence = refusal(capsys, "--served-model-name", "a", "m")
    assert (
        "--served-model-name has several values, and no model is given: if the last one is"
        in sentence
    )


def test_switches_are_1_or_0_in_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_args(["--disable-overlap"], {}) == ServerArgs(disable_overlap=True)
    for text, value in (("1", True), ("true", True), ("0", False), ("", False)):
        args = parse_args([], {"MINISGL_DISABLE_CUDA_GRAPH": text})
        assert args.disable_cuda_graph is value
    assert parse_args(["--disable-overlap"], {"MINISGL_DISABLE_OVERLAP": "0"}).disable_overlap
    sentence = refusal(capsys, MINISGL_DISABLE_OVERLAP="maybe")
    assert "MINISGL_DISABLE_OVERLAP: expected 1 or 0, got 'maybe'" in sentence


def test_a_bad_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "MINISGL_PORT: expected a whole number" in refusal(capsys, MINISGL_PORT="http")
    of_service = refusal(capsys, MINISGL_PORT="tcp://10.96.0.12:80")
    assert "Kubernetes sets it where a Service is called minisgl: give --port" in of_service
    assert parse_args(["--port=8000"], {"MINISGL_PORT": "tcp://10.96.0.12:80"}).port == 8000


def test_a_bad_flag_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--port", "http"], {})
    usage, sentence = capsys.readouterr().err.splitlines()
    assert usage.endswith("minisgl-serve --help lists the flags")
    assert "--port: expected a whole number" in sentence


def test_a_variable_that_is_nearly_an_options_is_named() -> None:
    """Others are nobody's business here: those of Kubernetes, those of the build."""
    environment = {
        "MINISGL_API_KEYS": "a",
        "MINISGL_KV_DTPYE": "int8",
        "MINISGL_PORT": "8000",
        "MINISGL_CPU_ISA": "avx2",
        "MINISGL_URL": "http://127.0.0.1:8000",
        "MINISGL_CUBLAS_ROOT": "/opt",
        "MINISGL_PYNCCL_MAX_BUFFER_SIZE": "1G",
        "MINISGL_SERVICE_HOST": "10.96.0.12",
        "MINISGL_SERVICE_PORT": "80",
        "MINISGL_SERVICE_PORT_HTTP": "80",
        "MINISGL_PORT_80_TCP": "tcp://10.96.0.12:80",
        "MINISGL_PORT_80_TCP_ADDR": "10.96.0.12",
        "MINISGL_PORT_80_TCP_PORT": "80",
        "MINISGL_PORT_80_TCP_PROTO": "tcp",
        "API_KEYS": "a",
        "PATH": "/bin",
    }
    assert dict(mistyped_variables(environment)) == {
        "MINISGL_API_KEYS": "MINISGL_API_KEY",
        "MINISGL_KV_DTPYE": "MINISGL_KV_DTYPE",
    }


def test_the_number_of_ranks_is_that_of_tp_info(capsys: pytest.CaptureFixture[str]) -> None:
    """As the flag and the variable say it, and as a rank of them says it of itself."""
    assert ServerArgs().tp_info == DistributedInfo(0, 1)
    for args in (parse_args(["--tp", "4"], {}), parse_args([], {"MINISGL_TP": "4"})):
        assert (args.tp_info, args.tp) == (DistributedInfo(0, 4), 4)
        ranks = [replace(args, tp_info=DistributedInfo(rank, args.tp)) for rank in range(4)]
        assert [one.tp_info.rank for one in ranks] == [0, 1, 2, 3]
        assert [replace(one, tp_info=args.tp_info) for one in ranks] == 4 * [args]
    with pytest.raises(ValueError, match="tp_info must be a DistributedInfo, got 2"):
        ServerArgs(tp_info=2)  # type: ignore[arg-type]
    sentence = refusal(capsys, MINISGL_TP="0")
    assert "environment variable MINISGL_TP: expected at least 1 rank, got '0'" in sentence
    with pytest.raises(SystemExit):
        parse_args(["--help"], {})
    shown = capsys.readouterr().out
    assert "--tp N" in shown
    assert "all hosts together (default 1)" in " ".join(shown.split())


def test_the_same_bounds_hold_in_python() -> None:
    with pytest.raises(ValueError, match="port must be between 0 and 65535, got -1"):
        ServerArgs(port=-1)
    with pytest.raises(ValueError, match="must be a number, got '8000'"):
        ServerArgs(port="8000")  # type: ignore[arg-type]


def test_every_setting_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"], {})
    text = capsys.readouterr().out
    for field in fields(ServerArgs):
        name = {"num_threads": "threads", "tp_info": "tp"}.get(field.name, field.name)
        assert f"--{name.replace('_', '-')}" in text


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(parse_args([], {"MINISGL_API_KEY": "secret"}))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_args(["--version"], {})
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("minisgl 0.")


def test_the_cache_is_where_the_system_wants_it() -> None:
    assert default_cache_dir({"XDG_CACHE_HOME": "/var/cache"}) == Path("/var/cache/minisgl")
    for unusable in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert default_cache_dir(unusable) == Path.home() / ".cache" / "minisgl"


def test_several_hosts_need_an_address_and_a_secret() -> None:
    hosts: dict[str, Any] = {"tp_info": DistributedInfo(0, 4), "nnodes": 2}
    address = {"dist_init_addr": "10.0.0.1:5000"}
    for changes, sentence in (
        (
            {"tp_info": DistributedInfo(0, 3), "nnodes": 2},
            "tp_info must have a multiple of --nnodes (2) ranks, got 3",
        ),
        ({"node_rank": 1}, "node_rank must be below --nnodes (1), got 1"),
        (hosts, "dist_init_addr must be given where --nnodes is more than 1"),
        (
            {**hosts, "dist_init_addr": "here"},
            "must be host:port with a port up to 65533, got 'here'",
        ),
        ({**hosts, "dist_init_addr": "x:65534"}, "got 'x:65534'"),
        ({**hosts, **address}, "dist_secret must be given"),
        ({**hosts, **address, "dist_secret": "short"}, "at least 16 characters, got 5"),
        (
            {**hosts, **address, "dist_secret": "0123456789abcdef", "comm": "shm"},
            "comm shm joins the ranks of one host, and --nnodes is 2",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            ServerArgs(**changes)
    args = parse_args(
        ["--tp", "4", "--nnodes", "2", "--node-rank", "1", "--dist-init-addr", "[fd00::1]:5000"],
        {"MINISGL_DIST_SECRET": "0123456789abcdef"},
    )
    assert args.dist_secret == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(args)
    assert args.dist_init_addr is not None
    assert parse_address(args.dist_init_addr) == ("fd00::1", 5000)


def test_api_keys() -> None:
    """One per flag, whole; one in the environment, commas and all; an empty one is refused."""
    assert parse_args(["--api-key", "a,b", "--api-key", "c", "model"], {}).api_key == ("a,b", "c")
    assert parse_args(["--api-key", "a", "model"], {}).model == "model"
    assert parse_args([], {"MINISGL_API_KEY": "a,b"}).api_key == ("a,b",)
    for argv, environment in ((["--api-key", ""], {}), ([], {"MINISGL_API_KEY": ""})):
        with pytest.raises(SystemExit):
            parse_args(argv, environment)


def test_allowed_hosts() -> None:
    assert parse_args([], {}).allowed_hosts == ()
    flags = [f"--allowed-hosts={name}" for name in ("a.example", "b.example", "c")]
    assert parse_args(flags, {}).allowed_hosts == ("a.example", "b.example", "c")


def test_allowed_origins() -> None:
    origins = ("https://a.example", "http://localhost:5173")
    flags = [f"--allowed-origins={origin}" for origin in origins]
    assert parse_args(flags, {}).allowed_origins == origins
    assert parse_args([], {"MINISGL_ALLOWED_ORIGINS": ",".join(origins)}).allowed_origins == origins
    assert parse_args(["--allowed-origins", "*"], {}).allowed_origins == ("*",)
