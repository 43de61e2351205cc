"""Files of the preflight of a job: the address that each node publishes, and the report that it writes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pydantic.dataclasses import dataclass

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.records import parse_record

_Record = TypeVar("_Record")
_ADDRESS_SUFFIX = ".address.json"


@dataclass(frozen=True)
class NodeAddress:
    """Where a node waits for the greetings of the other nodes; the file `<host>.address.json`.

    Example:
        NodeAddress(address="10.0.0.1", port=40123, token="9f31c04be2a75d68")

    Attributes:
        token: a random text that the node sends in reply. It shows that the right machine has answered.
    """

    address: str
    port: int
    token: str

    def write(self, folder: Path, host: str) -> None:
        """Write the file of the node `host` to `folder`."""
        write_json(address_file(folder, host), asdict(self))


@dataclass(frozen=True)
class NodeReport:
    """Results of the preflight on one node; the file `<host>.json`.

    Example:
        NodeReport(
            host="n1",
            address="10.0.0.1",
            gpus=8,
            model="9f31c04be2a75d68 in /models/llama",
            versions={"commit": "0c1d2e3", "torch": "2.13.0"},
            clock_offsets={"n2": 0.012},
            results={"disk": CheckResult("pass", "2.1 TB free")},
        )

    Attributes:
        address: the address at which the other nodes reach this one; empty if it has none.
        gpus: number of GPUs; None on CPU, where a node has as many logical GPUs as needed.
        model: fingerprint and directory of the policy; None if the policy is not on the node.
        versions: version of each package, and the commit of the code.
        clock_offsets: clock of each other node minus the clock of this node, in seconds.
        results: results by the name of the check.
    """

    host: str
    address: str
    gpus: int | None
    model: str | None
    versions: dict[str, str]
    clock_offsets: dict[str, float]
    results: dict[str, CheckResult]

    def write(self, folder: Path) -> None:
        """Write the report to `folder`."""
        write_json(report_file(folder, self.host), asdict(self))


def address_file(folder: Path, host: str) -> Path:
    """Return the path of the NodeAddress of `host`."""
    return folder / f"{host}{_ADDRESS_SUFFIX}"


def report_file(folder: Path, host: str) -> Path:
    """Return the path of the NodeReport of `host`."""
    return folder / f"{host}.json"


def read_address(folder: Path, host: str) -> NodeAddress:
    """Read the address that `host` has published. Raises InputError if the file is not valid."""
    return _read_record(NodeAddress, address_file(folder, host))


def read_reports(folder: Path) -> dict[str, NodeReport]:
    """Read all reports in `folder`, by host. Raises InputError if a file is not valid."""
    files = [file for file in sorted(folder.glob("*.json")) if not file.name.endswith(_ADDRESS_SUFFIX)]
    reports = [_read_record(NodeReport, file) for file in files]
    return {report.host: report for report in reports}


def _read_record(kind: type[_Record], file: Path) -> _Record:
    return parse_record(kind, read_json(file), f"{file} (if it is damaged, run the doctor into a new folder)")
