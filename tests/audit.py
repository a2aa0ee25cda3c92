"""Known vulnerabilities of the resolved environment, by pip-audit from the services that it knows: PyPI's and OSV's.

    python tests/audit.py AUDITOR CONSTRAINTS [--ignore ID ...]      (make audit)

A service is first asked about a release that is known to be vulnerable. One that knows nothing of it has not been
asked, whatever pip-audit says: an index without PyPI's own interface gives "No known vulnerabilities found".
Exit code 0: nothing was found, or nobody could be asked, which is said; 1: findings, which are listed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVICES = ("pypi", "osv")
KNOWN = "jinja2==2.4.1"
"""Three of its advisories are from 2014 to 2019; they will stay."""
_SECONDS = 900


@dataclass
class Report:
    """What a service said: findings as lines by id, and packages that it does not know. `error`: it said nothing."""

    findings: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    error: str = ""


def asked(auditor: str, service: str, lines: Sequence[str]) -> Report:
    """Ask one service about exactly these packages."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "listed.txt"
        listed.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        options = ["--requirement", str(listed), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        command = [auditor, "--vulnerability-service", service, "--format", "json", "--timeout", "15", *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Report(error=str(error))
    try:
        return read(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        return Report(error=said[-1][:300])


def read(answer: dict[str, Any]) -> Report:
    """The report in pip-audit's JSON."""
    report = Report()
    for package in answer["dependencies"]:
        if "skip_reason" in package:
            report.unknown.append(package["name"])
            continue
        for one in package["vulns"]:
            fixed = ", ".join(one.get("fix_versions", ())) or "no version yet"
            report.findings[one["id"]] = f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}"
    return report


def audit(auditor: str, lines: Sequence[str], ignored: Sequence[str] = ()) -> tuple[int, list[str]]:
    """The exit code, and the lines to print."""
    said: list[str] = []
    found: dict[str, str] = {}
    answers = 0
    for service in SERVICES:
        control = asked(auditor, service, [KNOWN])
        if not control.findings:
            why = control.error or f"it knows no vulnerability of {KNOWN}, which has some"
            said.append(f"audit: {service} could not be asked: {why}")
            continue
        report = asked(auditor, service, lines)
        if report.error:
            said.append(f"audit: {service} could not be asked: {report.error}")
            continue
        answers += 1
        found |= report.findings
        said.append(f"audit: {service}: {len(lines) - len(report.unknown)} packages, {len(report.findings)} findings")
        if report.unknown:
            said.append(f"audit: {service} does not know {', '.join(report.unknown)}")
    open_ones = {name: line for name, line in found.items() if name not in ignored}
    said += [f"audit: {line}{'' if name in open_ones else ' (accepted)'}" for name, line in sorted(found.items())]
    if not answers:
        said.append(
            f"audit: NOT DONE: no service could be asked from here, so nothing is known of {len(lines)} packages."
        )
    return int(bool(open_ones)), said


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("auditor", help="the program pip-audit")
    parser.add_argument("constraints", type=Path, help="lines NAME==VERSION")
    parser.add_argument("--ignore", nargs="*", default=[], metavar="ID", help="findings that are accepted")
    given = parser.parse_args()
    lines = given.constraints.read_text(encoding="utf-8").splitlines()
    code, said = audit(given.auditor, [line for line in lines if "==" in line], given.ignore)
    print("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main())
