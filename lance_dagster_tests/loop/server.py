"""A real web server and daemon on 127.0.0.1 for a tiny experiment, spoken to as the web UI does: by GraphQL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_dagster_tests.tiny import REPOSITORY

DEFINITIONS = """
from pathlib import Path
import dagster as dg
from lance_dagster.components.console import console_logger
from lance_dagster.components.experiment import Experiment
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.settings import parse_settings
import json
root = Path(__file__).parent
experiment = Experiment("tiny", parse_settings(json.loads((root / "settings.json").read_text())), root)
defs = dg.Definitions.merge(
    experiment_definitions(experiment),
    dg.Definitions(executor=dg.in_process_executor, loggers={"console": console_logger}),
)
"""


_REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "tiny"}


@dataclass(frozen=True)
class Server:
    """Where the web server listens and where its files lie."""

    url: str
    home: Path

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """One GraphQL request; AssertionError with the server's answer if it has errors."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            value: dict[str, Any] = json.loads(answer.read())
        assert not value.get("errors"), value["errors"]
        data: dict[str, Any] = value["data"]
        return data

    def backfill(self, assets: list[str], partitions: list[str]) -> str:
        """Launch an asset backfill as the UI's dialog does; returns its id."""
        answer = self.query(
            """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
                 __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            params={
                "assetSelection": [{"path": ["tiny", name]} for name in assets],
                "partitionNames": partitions,
                "title": "test",
            },
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["backfillId"])

    def reexecute_backfill(self, backfill: str) -> str:
        """Re-execute a backfill from failure, as the UI's button does; returns the id of the new one."""
        answer = self.query(
            """mutation($params: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $params) {
                 __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            params={"parentRunId": backfill, "strategy": "FROM_FAILURE"},
        )["reexecutePartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["backfillId"])

    def launch(self, job: str, partition: str) -> str:
        """Launch a job for a partition; returns the id of the run."""
        answer = self.query(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
                 ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            params={
                "selector": {"pipelineName": job, **_REPOSITORY},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
                "runConfigData": {},
            },
        )["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def reexecute(self, run: str) -> str:
        """Re-execute a run from failure; returns the id of the new one."""
        answer = self.query(
            """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) { __typename
                 ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            params={"parentRunId": run, "strategy": "FROM_FAILURE"},
        )["launchRunReexecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def terminate(self, run: str) -> None:
        """Ask a run to stop, as the UI's button does."""
        answer = self.query(
            """mutation($id: String!) { terminateRun(runId: $id) { __typename } }""",
            id=run,
        )["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def messages(self, run: str) -> list[str]:
        """What a run logged, and the descriptions of its failures."""
        answer = self.query(
            """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
                 ... on MessageEvent { message }
                 ... on ExecutionStepFailureEvent { failureMetadata { description } } } } } }""",
            id=run,
        )["logsForRun"]["events"]
        return [json.dumps(event) for event in answer]

    def wait_for_run(self, run: str, seconds: float) -> str:
        """Wait until a run ends; returns its status."""

        def status() -> str | None:
            answer = self.query("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)
            value = str(answer["runOrError"]["status"])
            return value if value in ("SUCCESS", "FAILURE", "CANCELED") else None

        return str(wait_until(status, seconds, f"run {run} did not end"))

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs with all of these tags (underscores stand for slashes' second part), oldest first."""
        answer = self.query(
            """query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
                 runId status startTime endTime tags { key value } assetSelection { path }
                 stepStats { stepKey status } } } } }""",
            filter={"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        )["runsOrError"]["results"]
        return sorted(answer, key=lambda run: run["startTime"] or float("inf"))

    def reload(self) -> None:
        """Load the definitions anew, as the UI's button does."""
        answer = self.query(
            """mutation { reloadRepositoryLocation(repositoryLocationName: "tiny") { __typename
                 ... on WorkspaceLocationEntry { loadStatus locationOrLoadError { __typename
                   ... on PythonError { message } } } } }"""
        )["reloadRepositoryLocation"]
        assert answer["locationOrLoadError"]["__typename"] == "RepositoryLocation", answer

    def start_sensor(self, name: str) -> None:
        """Switch a sensor on."""
        answer = self.query(
            """mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename
                 ... on Sensor { sensorState { status } } } }""",
            selector={"sensorName": name, **_REPOSITORY},
        )["startSensor"]
        assert answer["sensorState"]["status"] == "RUNNING", answer

    def ticks(self, sensor: str) -> list[dict[str, Any]]:
        """Finished ticks of a sensor, newest first."""
        answer = self.query(
            """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { ... on Sensor {
                 sensorState { ticks(limit: 100) { status timestamp endTimestamp error { message } } } } } }""",
            selector={"sensorName": sensor, **_REPOSITORY},
        )["sensorOrError"]["sensorState"]["ticks"]
        return [tick for tick in answer if tick["status"] != "STARTED"]

    def wait_for_rest(self, sensor: str, seconds: float, ticks: int = 4) -> None:
        """Wait until a sensor looked ``ticks`` times in a row without any run going on or being requested."""
        rest: list[float] = []

        def resting() -> bool | None:
            newest = self.ticks(sensor)
            assert not newest or newest[0]["status"] != "FAILURE", newest[0]
            busy = [run for run in self.runs() if run["status"] in ("QUEUED", "NOT_STARTED", "STARTING", "STARTED")]
            if busy or (newest and newest[0]["status"] == "SUCCESS"):
                rest.clear()
            elif newest and newest[0]["timestamp"] not in rest:
                rest.append(newest[0]["timestamp"])
            return True if len(rest) >= ticks else None

        wait_until(resting, seconds, f"{sensor} did not come to rest")

    def wait_for_backfill(self, backfill: str, seconds: float) -> str:
        """Wait until a backfill ends; returns its status."""

        def status() -> str | None:
            answer = self.query(
                """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
                     ... on PartitionBackfill { status } } }""",
                id=backfill,
            )["partitionBackfillOrError"]["status"]
            return None if answer in ("REQUESTED", "CANCELING", "FAILING") else str(answer)

        return str(wait_until(status, seconds, "the backfill did not end"))


def wait_until(ready: Callable[[], Any], seconds: float, complaint: str) -> Any:
    """Call ``ready`` every half second until it returns something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = ready()
        if value is not None:
            return value
        time.sleep(0.5)
    raise AssertionError(f"{complaint} within {seconds:.0f} s")


@contextmanager
def serving(home: Path, settings: Mapping[str, Any] | None) -> Iterator[Server]:
    """Web server and daemon with the project's own dagster.yaml, over the tiny experiment with these settings.

    Without settings, over the experiments that the project ships.
    """
    if settings is None:
        shutil.copyfile(REPOSITORY / "workspace.yaml", home / "workspace.yaml")
    else:
        (home / "settings.json").write_text(json.dumps(settings))
        (home / "definitions.py").write_text(DEFINITIONS)
        (home / "workspace.yaml").write_text(
            "load_from:\n  - python_file: {relative_path: definitions.py, location_name: tiny}\n"
        )
    shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    binaries = Path(sys.executable).parent
    subprocess.run(
        [binaries / "dagster", "instance", "migrate"], cwd=home, env=environment, check=True, capture_output=True
    )
    commands = [
        [binaries / "dagster-webserver", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        [binaries / "dagster-daemon", "run", "-w", "workspace.yaml"],
    ]
    with (home / "server.log").open("w") as log:
        processes = [
            subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
            for command in commands
        ]
        server = Server(f"http://127.0.0.1:{port}", home)

        def answers() -> bool | None:
            try:
                loaded = server.query("{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }")
            except OSError:
                return None
            entries = loaded["workspaceOrError"]["locationEntries"]
            return True if entries and entries[0]["loadStatus"] == "LOADED" else None

        try:
            wait_until(answers, 90, "the web server did not come up")
            yield server
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
