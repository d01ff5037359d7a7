"""The command line of both packages: ``natten-mps COMMAND`` and ``natten-mlx COMMAND``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..plan.backend import DENSE
from .bench import add_bench
from .demo import DemoPackage, add_demo
from .doctor import DoctorPackage, Patient, add_doctor
from .installation import Framework
from .plan import Target, add_plan
from .report import add_report
from .train import Trainer, TrainPackage, add_train, join_train
from .tune import add_tune
from .viz import add_viz


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The command line of one package, which imports its framework only when a command needs it.

    package: 'natten-mps'. framework: as installers know it. backends: those that can run the demo.
    tensors(arrays, backend): arrays of numpy as tensors where the backend runs; numpy(tensor): the reverse.
    """

    package: str
    framework: Framework
    backends: tuple[str, ...]
    tensors: Callable[[Sequence[Any], str | None], Sequence[Any]]
    numpy: Callable[[Any], Any]

    def _module(self, name: str = "") -> Any:
        """The package itself, or a module of it."""
        return import_module(self.package.replace("-", "_") + name)

    def _attend(self, query: Any, key: Any, value: Any, kernel_size: int, backend: str | None) -> tuple[Any, Any]:
        tensors = self.tensors((query, key, value), backend)
        output, lse = self._module().na2d(*tensors, kernel_size, scale=1.0, return_lse=True, backend=backend)
        return self.numpy(output), self.numpy(lse)

    def _explain(self, query: Any, key: Any, value: Any, kernel_size: int, backend: str | None) -> str:
        tensors = self.tensors((query, key, value), backend)
        said: str = self._module().explain("na2d", *tensors, kernel_size=kernel_size, scale=1.0, backend=backend)
        return said

    def _get_backend(self) -> str:
        chosen: str = self._module().get_backend()
        return chosen

    def _use_backend(self, backend: str) -> AbstractContextManager[None]:
        within: AbstractContextManager[None] = self._module().use_backend(backend)
        return within

    def _trainer(self, weights: dict[str, Any]) -> Trainer:
        trainer: Trainer = self._module("._tools.train").Trainer(weights)
        return trainer

    def _patient(self) -> Patient:
        patient: Patient = self._module("._tools.doctor").PATIENT
        return patient

    def _target(self) -> Target:
        target: Target = self._module("._tools.plan").TARGET
        return target

    def _subject(self, on_cpu: bool) -> Any:
        return self._module("._tools.bench").subject(on_cpu)

    def _timer(self) -> Any:
        return self._module("._timer").TIMER

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line ``argv`` (default: the process's own) and return the exit status.

        Raises SystemExit for --help, --version and a command line that cannot be parsed, as argparse does.
        """
        package = self.package
        parser = argparse.ArgumentParser(
            package, description=f"Neighborhood attention for {self.framework.name} on Apple GPUs and on any CPU."
        )
        parser.add_argument("--version", action="version", version=f"{package} {self._module().__version__}")
        commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        add_doctor(commands, DoctorPackage(package, self.framework, self._patient))
        # Dense attention has enough memory for the few tokens of a digit, and for a problem that it is timed on.
        with_dense = (*self.backends, DENSE.name)
        add_bench(commands, package, with_dense, self._subject)
        add_report(commands, package)
        add_plan(commands, package, self._target)
        add_tune(commands, package, self._timer)
        add_viz(commands, package)
        add_demo(commands, DemoPackage(package, self.backends, self._get_backend, self._attend, self._explain))
        add_train(commands, TrainPackage(package, with_dense, self._get_backend, self._trainer, self._use_backend))
        arguments = parser.parse_args(join_train(sys.argv[1:] if argv is None else list(argv)))
        try:
            return int(arguments.run(arguments))
        except ImportError as error:
            if self.framework.module in sys.modules:  # then it is not the framework that cannot be imported
                raise
            said = f"{self.framework.name} cannot be imported: {error}"
            print(f"{package}: {said}; `{package} doctor` says what to do", file=sys.stderr)
            return 1
