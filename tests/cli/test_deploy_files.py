"""The files in deploy/: what they name exists, and they agree with each other and with `elutq serve`."""

import inspect
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

from elutq_cli.app import app
from elutq_cli.commands.serve import serve_command
from elutq_cli.server.listener import SHUTDOWN_SECONDS
from elutq_formats.errors import ElutqError

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
SECONDS_TO_LEAVE = inspect.signature(serve_command).parameters["shutdown_timeout"].default + SHUTDOWN_SECONDS


def read_yaml(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions(name):
    return re.findall(rf"^{name} (.*)", DOCKERFILE, re.MULTILINE)


def check_serve(words):
    """Check that the options of a call of serve exist."""
    command = typer.main.get_command(app).commands["serve"]
    with command.make_context("serve", [word for word in words if not word.startswith("$")]):
        pass


def test_the_image_is_made_of_files_that_are_there_and_runs_serve_as_no_root():
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == set(sources)
    assert len(instructions("FROM")) == 2
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert "\nUSER elutq\n" in last and "useradd" in last
    (command,) = instructions("CMD")
    assert instructions("ENTRYPOINT") == ['["elutq"]']
    check_serve(yaml.safe_load(command)[1:])


def test_what_the_image_asks_for_its_health_tells_a_server_from_none(local):
    (check,) = (line.partition(" CMD ")[2] for line in instructions("HEALTHCHECK"))
    program, flag, code = yaml.safe_load(check)
    assert (program, flag) == ("python3", "-c")
    assert local.get(re.search(r":8080(/\w+)", code)[1]).status == 200
    nobody = subprocess.run([sys.executable, flag, code.replace(":8080", ":1")], capture_output=True, timeout=60)
    assert nobody.returncode == 1


def test_compose_nginx_and_prometheus_name_the_same_servers():
    services = read_yaml("compose.yaml")["services"]
    servers = {f"{name}:8080" for name in services if name.startswith("elutq")}
    assert len(servers) == 2
    assert set(re.findall(r"^    server (\S+) ", (DEPLOY / "nginx.conf").read_text(), re.MULTILINE)) == servers
    (scrape,) = read_yaml("prometheus.yml")["scrape_configs"]
    assert set(scrape["static_configs"][0]["targets"]) == servers
    for service in services.values():
        for volume in service["volumes"]:
            assert volume.startswith("${MODELS") or (DEPLOY / volume.split(":")[0]).is_file(), volume
    for name in servers:
        service = services[name.partition(":")[0]]
        check_serve(service["command"][1:])
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert int(service["stop_grace_period"].removesuffix("s")) > SECONDS_TO_LEAVE


def test_the_rules_add_up_what_servers_tell(local):
    told = set(re.findall(r"^(elutq_\w+)", local.get("/metrics").body.decode(), re.MULTILINE))
    (group,) = read_yaml("rules.yml")["groups"]
    recorded = {rule.get("record") for rule in group["rules"]}
    for rule in group["rules"]:
        names = re.findall(r"elutq[_:][\w:]+", rule["expr"])
        assert {name for name in names if name not in told and name not in recorded} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (apt-get install prometheus)")
def test_prometheus_takes_its_files():
    subprocess.run(["promtool", "check", "config", DEPLOY / "prometheus.yml"], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_takes_the_unit_and_finds_it_closed(tmp_path):
    text = (DEPLOY / "elutq.service").read_text()
    command = re.search(r"^ExecStart=(.*)", text, re.MULTILINE)[1]
    check_serve(shlex.split(command)[2:])
    assert int(re.search(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)[1]) > SECONDS_TO_LEAVE
    unit = tmp_path / "elutq.service"
    unit.write_text(text.replace("/opt/elutq/bin/elutq", str(Path(sys.executable).with_name("elutq"))))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0, verified.stderr
    assert "elutq" not in verified.stderr  # where other units of the machine are complained of too
    options = ["--offline=true", "--threshold=20"]  # tenths: "OK", as far as a service with a network can come
    subprocess.run(["systemd-analyze", "security", *options, unit], check=True, capture_output=True, timeout=60)


@pytest.fixture
def ray_app(monkeypatch):
    """What deploy/ray_serve.py makes of arguments, and what it asks Ray Serve for."""

    class Deployment:
        @classmethod
        def options(cls, **options):
            cls.asked = options
            return cls

        @classmethod
        def bind(cls, *arguments):
            return cls.asked, arguments

    ray, serve = ModuleType("ray"), ModuleType("ray.serve")
    serve.deployment, serve.ingress, serve.Application = lambda **_: lambda _: Deployment, lambda: lambda of: of, object
    ray.serve = serve
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.setenv("ELUTQ_API_KEY", "key")
    return runpy.run_path(str(DEPLOY / "ray_serve.py"))["app"]


def test_ray_serve_is_asked_for_what_the_arguments_say(ray_app):
    assert ray_app({"model": "a"}) == ({"num_replicas": 1, "max_ongoing_requests": 8}, ("a", 8, "key"))
    asked, arguments = ray_app({"model": "a", "replicas": "4", "parallel": "2"})
    assert (asked, arguments) == ({"num_replicas": 4, "max_ongoing_requests": 2}, ("a", 2, "key"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "a", "replica": "4"}, "replica is not known: give model, replicas or parallel"),
        ({"replicas": "4"}, "say which model: model=FILE, or org/name on the hub"),
        ({"model": "a", "replicas": "many"}, "replicas is 'many': give a number from 1"),
        ({"model": "a", "parallel": "0"}, "parallel is '0': give a number from 1"),
    ],
)
def test_arguments_of_ray_serve_are_checked(ray_app, arguments, said):
    with pytest.raises(ElutqError, match=f"^{said}$"):
        ray_app(arguments)
