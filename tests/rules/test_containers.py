"""Dockerfile.gpu and docker-compose.yml, checked against the project without a Docker engine."""

import ast
import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer
import yaml

from cli.main import build_app
from jobs.settings import Settings
from jobs.task_queue import Queue

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
_DURATION = re.compile(r"(\d+)s")
_PINNED = re.compile(r"[a-z/-]+:v?\d+(\.\d+)+[\w.-]*")


def read_instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions as (word, rest), lines that go on joined, comments gone."""
    text = (ROOT / "Dockerfile.gpu").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, rest in (line.split(" ", 1) for line in joined.splitlines() if line.strip())]


def read_stages() -> dict[str, list[tuple[str, str]]]:
    """By name, each with its own instructions; the first is FROM."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for word, rest in read_instructions():
        if word == "FROM":
            name = rest.split(" AS ")[1]
            stages[name] = []
        stages[name].append((word, rest))
    return stages


def read_constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and line[0] != "#"]
    return {name.lower(): version for name, version in pins}


def get_commands(command: click.Command | None = None) -> dict[str, Any]:
    group: Any = command or typer.main.get_command(build_app())
    return dict(group.commands)


# --- Dockerfile.gpu ---------------------------------------------------------------------------------------------------


def test_every_image_is_pinned_by_a_tag() -> None:
    stages = read_stages()
    bases = [rest.split(" AS ")[0] for word, rest in read_instructions() if word == "FROM"]
    images = [base for base in bases if base not in stages] + [SERVICES[name]["image"] for name in SERVICES]

    assert images
    assert [image for image in images if not _PINNED.fullmatch(image)] == []


def test_the_images_that_are_built_carry_the_projects_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version

    assert {SERVICES[name]["image"].split(":")[1] for name in OURS} == {version[1]}


def test_every_stage_comes_from_an_image_or_an_earlier_stage() -> None:
    seen: list[str] = []
    for name, instructions in read_stages().items():
        base = instructions[0][1].split(" AS ")[0]
        copied = [rest.split("=")[1].split()[0] for word, rest in instructions if rest.startswith("--from=")]
        assert ":" in base or base in seen, name
        assert set(copied) <= set(seen), name
        seen.append(name)


def test_copied_files_exist_and_reach_the_build() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    copies = [rest for word, rest in read_instructions() if word == "COPY" and not rest.startswith("--from=")]
    sources = {source for copy in copies for source in copy.split()[:-1]}

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert sources == allowed


def test_both_images_hold_every_package_of_the_project() -> None:
    wheel = re.search(r"^packages = (\[.+\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert wheel

    for stage in ("service-build", "gpu-build"):
        copied = {rest.split()[0] for word, rest in read_stages()[stage] if word == "COPY"}
        assert set(ast.literal_eval(wheel[1])) <= copied


def test_every_pip_install_is_constrained_and_keeps_no_cache() -> None:
    runs = [rest for word, rest in read_instructions() if word == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if "pip install" in part]

    assert installs
    for install in installs:
        assert "-c constraints.txt" in install
        assert "--no-cache-dir" in install
        assert "--compile" in install


def test_torch_is_installed_first_in_the_gpu_image_and_never_in_the_other() -> None:
    installs = {
        stage: [rest for word, rest in instructions if word == "RUN" and "pip install" in rest]
        for stage, instructions in read_stages().items()
    }

    assert installs["gpu-build"][0].endswith("-c constraints.txt torch")
    assert "train" in " ".join(installs["gpu-build"][1:])
    assert not re.search(r"\btorch\b|\btrain\b", " ".join(installs["service-build"]))


def test_named_versions_are_those_of_the_constraints() -> None:
    text = (ROOT / "Dockerfile.gpu").read_text(encoding="utf-8")
    named = re.findall(r"([A-Za-z0-9_.-]+)==([\w.+]+)", text)

    assert [pair for pair in named if read_constraints().get(pair[0].lower()) != pair[1]] == []


def test_the_constraints_name_a_torch_that_has_a_cuda_build() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", read_constraints()["torch"]), "no +cpu, or no GPU is used"


def test_the_cuda_image_is_of_the_version_that_torch_is_built_for() -> None:
    built_for = {"2.13": "13.0"}
    torch = ".".join(read_constraints()["torch"].split(".")[:2])
    assert torch in built_for, f"say here, and in Dockerfile.gpu, which CUDA torch {torch} from PyPI is built for"

    bases = [rest for word, rest in read_instructions() if word == "FROM" and "nvidia/cuda" in rest]

    assert [f"nvidia/cuda:{built_for[torch]}." in base for base in bases] == [True]


def test_both_pythons_are_new_enough_for_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.search(r'requires-python = ">=3\.(\d+)"', text)
    assert required

    named = {int(minor) for _, rest in read_instructions() for minor in re.findall(r"python:?3\.(\d+)", rest)}

    assert named
    assert min(named) >= int(required[1])


def test_the_gpu_image_can_compile_at_run_time() -> None:
    """DeepSpeed's CPUAdam and triton's stubs: a C++ compiler, ninja, and the headers of the Python that runs."""
    packages = " ".join(rest for word, rest in read_stages()["gpu-python"] if word == "RUN")
    python = re.search(r"python(3\.\d+) -m venv", " ".join(rest for _, rest in read_stages()["gpu-build"]))
    assert python

    assert {"g++", f"python{python[1]}-dev"} <= set(packages.split())
    assert "ninja" in read_constraints()


@pytest.mark.parametrize("target", ["service", "gpu"])
def test_an_image_runs_medtune_as_a_fixed_user_that_is_not_root(target: str) -> None:
    instructions = dict(read_stages()[target])

    assert instructions["USER"] == "10001:10001"
    assert f"--uid {instructions['USER'].split(':')[0]} " in instructions["RUN"]
    assert instructions["ENTRYPOINT"] == '["medtune"]'
    assert instructions["STOPSIGNAL"] == "SIGTERM"
    assert ast.literal_eval(instructions["CMD"])[0] in get_commands()
    assert "--interval" in instructions["HEALTHCHECK"]
    assert "CMD [" in instructions["HEALTHCHECK"]
    assert "HOME=/var/lib/medtune" in instructions["ENV"]


def test_the_users_folders_exist_for_the_volumes_to_take_their_owner_from() -> None:
    for target in ("service", "gpu"):
        run = dict(read_stages()[target])["RUN"]
        made = set(run.split("install -d -o medtune -g medtune -m 0700 ")[1].split())
        mounted = {
            mount.split(":")[1]
            for name in OURS
            for mount in SERVICES[name].get("volumes", [])
            if SERVICES[name]["build"]["target"] == target and not mount.endswith(":ro")
        }
        assert mounted <= made


def test_no_instruction_holds_a_secret() -> None:
    for word, rest in read_instructions():
        assert word != "ARG"
        assert not re.search(r"(?i)(password|secret|token|_key)\w*=", rest)


# --- docker-compose.yml -----------------------------------------------------------------------------------------------


def test_the_service_has_all_its_parts() -> None:
    parts = {"postgres", "redis", "migrate", "api", "worker", "check-worker", "reconciler"}

    assert set(SERVICES) == parts
    assert set(OURS) == parts - {"postgres", "redis"}


@pytest.mark.parametrize("name", OURS)
def test_a_part_is_built_from_a_stage_that_exists(name: str) -> None:
    build = SERVICES[name]["build"]

    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert build["target"] in read_stages()
    assert build["target"] == ("gpu" if name == "worker" else "service")
    assert SERVICES[name]["image"].startswith(f"medtune-{build['target']}:")


@pytest.mark.parametrize("name", OURS)
def test_a_parts_command_is_one_that_medtune_has(name: str) -> None:
    command = SERVICES[name]["command"]
    commands = get_commands()

    assert command[0] in commands
    commands[command[0]].make_context(command[0], command[1:])  # Raises for an option that does not exist.


def test_every_queue_has_its_worker() -> None:
    queues = [SERVICES[name]["command"][-1] for name in OURS if SERVICES[name]["command"][0] == "worker"]

    assert sorted(queues) == sorted(queue.value for queue in Queue)


@pytest.mark.parametrize("name", SERVICES)
def test_a_part_waits_for_what_it_needs_in_a_way_that_can_come_true(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"
    if name in OURS and name != "migrate":
        assert set(SERVICES[name]["depends_on"]) == {"postgres", "redis", "migrate"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_parts_secrets_and_volumes_are_declared_and_every_declared_one_is_used(name: str) -> None:
    sources = {get_source(secret) for service in SERVICES.values() for secret in service.get("secrets", [])}
    volumes = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}

    assert sources == set(COMPOSE["secrets"])
    assert {volume for volume in volumes if volume[0] not in "$./"} == set(COMPOSE["volumes"])
    assert set(SERVICES[name]["networks"]) <= set(COMPOSE["networks"])


@pytest.mark.parametrize("name", OURS)
def test_a_parts_secrets_are_settings_that_hold_secrets(name: str) -> None:
    for secret in SERVICES[name]["secrets"]:
        field = Settings.model_fields[secret.removeprefix("medtune_")]
        assert secret == f"medtune_{secret.removeprefix('medtune_')}"
        assert "SecretStr" in {kind.__name__ for kind in get_args(field.annotation)}


def test_settings_read_the_secrets_as_files_of_the_names_that_compose_mounts(tmp_path: Path) -> None:
    mounted = [secret for secret in COMPOSE["secrets"] if secret.startswith("medtune_")]
    for secret in mounted:
        (tmp_path / secret).write_text(f"the value of {secret}, long enough for each\n", encoding="utf-8")

    values = Settings(_secrets_dir=tmp_path).model_dump(context={"reveal_secrets": True})

    for secret in mounted:
        assert values[secret.removeprefix("medtune_")] == f"the value of {secret}, long enough for each"


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_a_parts_environment_or_arguments(name: str) -> None:
    service = SERVICES[name]
    shown = {**service.get("environment", {}), "command": service.get("command"), "test": service.get("healthcheck")}
    secret = {f"MEDTUNE_{n.upper()}" for n, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)}

    assert secret.isdisjoint(shown)
    for variable, value in shown.items():
        assert "PASSWORD" not in variable or str(value).startswith("/run/secrets/")
        assert not re.search(r"requirepass|://[^/\s]*:[^/\s]*@", str(value))


@pytest.mark.parametrize("name", OURS)
def test_a_parts_environment_names_settings(name: str) -> None:
    fields = {f"MEDTUNE_{field.upper()}" for field in Settings.model_fields}

    assert set(SERVICES[name]["environment"]) <= fields


@pytest.mark.parametrize("name", SERVICES)
def test_a_part_is_hardened_and_its_logs_are_bounded(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert "privileged" not in service
    assert "cap_add" not in service
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_server_does_not_run_as_root_and_is_reached_from_inside_only(name: str) -> None:
    assert SERVICES[name]["user"] == name
    assert SERVICES[name]["networks"] == ["internal"]
    assert COMPOSE["networks"]["internal"]["internal"] is True
    assert "ports" not in SERVICES[name]


def test_the_only_port_is_the_apis_on_the_loopback_interface() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["${PUBLISH_ADDRESS:-127.0.0.1}:${PUBLISH_PORT:-8000}:8000"]
    }
    assert SERVICES["api"]["environment"]["MEDTUNE_PORT"] == "8000"


def test_redis_keeps_nothing_and_drops_nothing() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[2::2], command[3::2], strict=True))

    assert options["--save"] == ""
    assert options["--appendonly"] == "no"
    assert options["--maxmemory-policy"] == "noeviction"


def test_the_worker_that_trains_gets_gpus_and_no_other_part_does() -> None:
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": "${GPUS:-all}", "capabilities": ["gpu"]}
    assert [name for name in SERVICES if "deploy" in SERVICES[name]] == ["worker"]


def test_parts_that_share_files_share_the_store_and_only_read_models() -> None:
    for name in ("api", "worker", "check-worker"):
        assert "store:/store" in SERVICES[name]["volumes"]
    for name in ("api", "worker"):
        assert "${MODELS_FOLDER:-./models}:/models:ro" in SERVICES[name]["volumes"]
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert environment["MEDTUNE_STORE_URL"] == "/store"
        assert environment["MEDTUNE_MODELS_DIR"] == "/models"


def test_what_a_site_brings_is_where_both_workers_can_only_read_it_and_the_example_names_it() -> None:
    mount = "${SITE_FOLDER:-./site}:/site:ro"
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = dict(re.findall(r"^# (MEDTUNE_\w+)=(/site/.+)$", example, re.MULTILINE))

    assert [name for name in SERVICES if mount in SERVICES[name].get("volumes", [])] == ["worker", "check-worker"]
    assert set(named) == {
        f"MEDTUNE_{field.upper()}"
        for field in ("benchmarks_dir", "phi_patterns_file", "safety_probes_file", "safety_rules_file")
    }
    assert {f"MEDTUNE_{field.upper()}" for field in Settings.model_fields} >= set(named)


def test_the_worker_that_trains_may_stop_for_longer_than_its_trainer() -> None:
    needed = Settings.model_fields["stop_grace_seconds"].default + 15

    assert read_seconds(SERVICES["worker"]["stop_grace_period"]) > needed


@pytest.mark.parametrize("name", SERVICES)
def test_every_part_says_how_long_it_may_take_to_stop_unless_it_ends_by_itself(name: str) -> None:
    if name != "migrate":
        assert read_seconds(SERVICES[name]["stop_grace_period"]) >= 15


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_is_valid(name: str) -> None:
    healthcheck = SERVICES[name]["healthcheck"]
    if healthcheck == {"disable": True}:
        return

    kind, *command = healthcheck["test"]

    assert {"interval", "timeout", "start_period", "retries"} <= set(healthcheck)
    assert read_seconds(healthcheck["timeout"]) <= read_seconds(healthcheck["interval"])
    if kind == "CMD-SHELL":
        subprocess.run(["sh", "-n", "-c", command[0]], check=True)
    elif command[:2] == ["python", "-c"]:
        assert kind == "CMD"
        compile(command[2], f"healthcheck of {name}", "exec")
    else:
        assert (kind, command[0]) == ("CMD", "pg_isready")


def test_a_dollar_sign_in_the_compose_file_only_begins_a_variable_with_a_default() -> None:
    lines = (ROOT / "docker-compose.yml").read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if re.search(r"\$(?!\{[A-Z_]+:-[^}]*\})", line)] == []


# --- docs/operations.md -----------------------------------------------------------------------------------------------


def test_the_documented_lines_make_every_secret_and_replace_none(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    folder = tmp_path / "secrets"
    made = {path.name: path.read_text(encoding="ascii") for path in folder.iterdir()}

    assert set(made) == set(COMPOSE["secrets"])
    assert all(secret["file"].endswith(f"/{name}") for name, secret in COMPOSE["secrets"].items())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    settings = Settings(_secrets_dir=folder)
    assert settings.database_url
    password = settings.database_url.get_secret_value().split(":")[2].split("@")[0]
    assert len(password) == 48
    assert f"PASSWORD '{password}'" in made["postgres_create_login"]
    with pytest.raises(subprocess.CalledProcessError):
        make_secrets(tmp_path)
    assert {path.name: path.read_text(encoding="ascii") for path in folder.iterdir()} == made


def test_documented_medtune_commands_exist() -> None:
    commands = get_commands()
    named = set(re.findall(r"(?:`|/bin/|exec api )medtune ([a-z]+(?: create)?)", OPERATIONS))

    assert {"migrate", "keys create"} <= named
    for command, *sub in map(str.split, named):
        assert command in commands
        assert all(word in get_commands(commands[command]) for word in sub)


def make_secrets(folder: Path) -> None:
    """Run the page's own lines."""
    assert shutil.which("openssl"), "the documented way needs openssl (Debian package openssl)"
    block = re.search(r"```sh\n(\s*\(\n.*?\n\s*\)\n)\s*```", OPERATIONS, re.DOTALL)
    assert block
    subprocess.run(["sh", "-c", inspect.cleandoc(block[1])], cwd=folder, check=True, capture_output=True)


def get_source(secret: str | dict[str, str]) -> str:
    return secret if isinstance(secret, str) else secret["source"]


def read_seconds(duration: str) -> int:
    match = _DURATION.fullmatch(duration)
    assert match, f"{duration}: whole seconds, please"
    return int(match[1])
