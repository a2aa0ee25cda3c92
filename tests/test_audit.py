"""The audit lists findings and fails on them; a service that knows nothing is not one that found nothing."""

import json
import sys
from pathlib import Path

import pytest

from tests.audit import KNOWN, audit

ROOT = Path(__file__).resolve().parents[1]
LINES = ["jinja2==3.1.6", "numpy==2.4.6"]
# What pip-audit prints, as recorded: a package with a finding, one without, and one that an index does not know.
BAD = {"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": ["CVE-2019-10906"], "description": "Sandbox."}
OF = {
    "knows": lambda name, version: {"name": name, "version": version, "vulns": [BAD] if version == "2.4.1" else []},
    "finds": lambda name, version: {"name": name, "version": version, "vulns": [] if name == "numpy" else [BAD]},
    "nothing": lambda name, version: {"name": name, "skip_reason": f"Dependency not found on PyPI: {name} ({version})"},
    "clean": lambda name, version: {"name": name, "version": version, "vulns": []},
}
PROGRAM = """#!{python}
import json, sys
services = json.loads({services!r})
answer = services[sys.argv[sys.argv.index("--vulnerability-service") + 1]]
if answer is None:
    sys.exit("Traceback\\nrequests.exceptions.ConnectionError: no network")
lines = open(sys.argv[sys.argv.index("--requirement") + 1]).read().split()
found = [answer[line] for line in lines]
print(json.dumps({{"dependencies": found, "fixes": []}}))
sys.exit(int(any(one.get("vulns") for one in found)))
"""


@pytest.fixture
def auditor(tmp_path):
    """A program that answers as pip-audit does where the services know this much; None: no network."""

    def make(pypi, osv):
        answers = {
            service: None if kind is None else {line: OF[kind](*line.split("==")) for line in [KNOWN, *LINES]}
            for service, kind in (("pypi", pypi), ("osv", osv))
        }
        path = tmp_path / "pip-audit"
        path.write_text(PROGRAM.format(python=sys.executable, services=json.dumps(answers)))
        path.chmod(0o755)
        return str(path)

    return make


def test_findings_are_listed_and_fail(auditor):
    code, said = audit(auditor("finds", None), LINES)
    assert code == 1
    assert "audit: jinja2 3.1.6: PYSEC-2019-217, fixed in 2.10.1" in said
    assert any("osv could not be asked: requests.exceptions.ConnectionError: no network" in line for line in said)
    assert "NOT DONE" not in "".join(said)


def test_accepted_findings_are_listed_and_pass(auditor):
    code, said = audit(auditor("finds", "finds"), LINES, ["PYSEC-2019-217"])
    assert code == 0
    assert "audit: jinja2 3.1.6: PYSEC-2019-217, fixed in 2.10.1 (accepted)" in said


def test_nothing_found_is_said_by_whom(auditor):
    code, said = audit(auditor("knows", "knows"), LINES)
    assert code == 0
    assert said == [f"audit: {service}: 2 packages, 0 findings" for service in ("pypi", "osv")]


@pytest.mark.parametrize("kind", ["nothing", "clean", None])
def test_a_service_that_knows_no_vulnerability_at_all_was_not_asked(auditor, kind):
    """An index without advisories gives `No known vulnerabilities found` and exit code 0."""
    code, said = audit(auditor(kind, kind), LINES)
    assert code == 0
    assert said[-1].startswith(
        "audit: NOT DONE: no service could be asked from here, so nothing is known of 2 packages"
    )


def test_without_the_program_it_is_said():
    code, said = audit("/no/such/pip-audit", LINES)
    assert code == 0
    assert "NOT DONE" in said[-1]


def test_the_gate_asks():
    gate = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert "make audit" in gate
