"""What can go wrong while real parts are built or started, each told in one line a person can act on."""

from typing import ClassVar


class ClusterError(RuntimeError):
    """A part of the one-machine cluster could not be built, started or stopped."""

    exit_status: ClassVar[int] = 1


class UnsuitableMachineError(ClusterError):
    """This machine cannot run a Kubernetes node; the message names what is missing and the two ways out."""

    exit_status: ClassVar[int] = 2


class PartFailedError(ClusterError):
    """A program ended or did not become ready in time; the message ends with the last lines of its log."""
