"""The options of `rayshard plan`."""

import argparse
from pathlib import Path


def add_plan_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `plan`."""
    parser = commands.add_parser(
        "plan", help="predict memory and speed of a Serve file's models on given devices, without Ray, GPU or weights"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a Serve file")
    where = "plan all models on this kind of device (default: what each asks for; for a CPU, this machine)"
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--device", metavar="NAME", help=where)
    nodes = "a YAML of the cluster's nodes: their CPUs, memory and GPUs; what has no room there is refused"
    target.add_argument("--cluster", type=Path, metavar="FILE", help=nodes)
    more = "a YAML of further devices, in the form of serve_app/planning/devices.yaml"
    parser.add_argument("--devices", type=Path, metavar="FILE", help=more)
    measure = "measure this CPU first, for minutes on a busy one; what is found stands for the device cpu from then on"
    parser.add_argument("--calibrate", action="store_true", help=measure)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a picture of each device's memory")
