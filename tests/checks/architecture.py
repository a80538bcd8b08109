#!/usr/bin/env python3
"""Holds the code against the arrows of the design: which folder may include what, and which target may link what.

usage: architecture.py SOURCE_DIR BUILD_DIR     (BUILD_DIR is a configured build tree; its link graph is read with --graphviz)
"""
import pathlib
import re
import subprocess
import sys
import tempfile

# folder -> patterns that no #include there may match
FORBIDDEN_INCLUDES = {
    "kernels": r"^(server|client|proto|expertd/v1|grpc|google/protobuf|prometheus|spdlog|CLI)",
    "server": r"^(client|cuda|cublas|kernels/cuda|kernels/cpu/(?!cpu_engine\.h))",
    "client": r"^(server|cuda|cublas|kernels/(?!tensor\.h|base/mutex\.h|checkpoint/safetensors))",
    "server/codec": r"^(grpc|google/protobuf|prometheus|expertd/v1)",
    "server/scheduler": r"^(grpc|google/protobuf|prometheus|expertd/v1)",
}
# what .cu files may see: CUDA, the standard library and plain headers of their own folder
ALLOWED_IN_CU = r"^(cuda|cublas|cub/|mma|kernels/cuda/|[a-z_]+$)"

# target -> targets that it must not reach through its links
FORBIDDEN_LINKS = {
    "expertd_tensor": ["expertd_engine", "gRPC::grpc++", "protobuf::libprotobuf"],
    "expertd_engine": ["expertd_proto", "expertd_server", "gRPC::grpc++", "protobuf::libprotobuf", "prometheus-cpp::core"],
    "expertd_codec": ["gRPC::grpc++", "protobuf::libprotobuf"],
    "expertd_scheduler": ["gRPC::grpc++", "protobuf::libprotobuf"],
    "expertd_client": ["expertd_engine", "expertd_server"],
    "expertd_proto": ["expertd_engine"],
}
# the CUDA implementation is the engine's private business: nobody else may link it directly
PRIVATE_TARGETS = {"expertd_cuda": r"^(expertd_engine|expertd_c|cuda_.*|expertd_kernels.*)$"}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)


def include_errors(source):
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source).as_posix()
        if path.suffix not in {".h", ".cc", ".cu", ".cuh"} or relative.startswith("build/"):
            continue
        for header in INCLUDE.findall(path.read_text(encoding="utf-8")):
            for folder, pattern in FORBIDDEN_INCLUDES.items():
                if relative.startswith(folder + "/") and re.match(pattern, header):
                    yield f"{relative}: must not include {header} ({folder}/ may not depend on it)"
            if path.suffix in {".cu", ".cuh"} and relative.startswith("kernels/") and not re.match(ALLOWED_IN_CU, header):
                yield f"{relative}: must not include {header} (.cu files see only CUDA and plain headers)"


def link_graph(build):
    with tempfile.TemporaryDirectory() as folder:
        dot = pathlib.Path(folder) / "graph.dot"
        subprocess.run(["cmake", f"--graphviz={dot}", "."], cwd=build, check=True, capture_output=True)
        text = dot.read_text()
    names = {node: label.split("\\n")[0] for node, label in re.findall(r'"(node\d+)" \[ label = "([^"]+)"', text)}
    aliases = {node: re.findall(r"\(([^)]+)\)", label) for node, label in re.findall(r'"(node\d+)" \[ label = "([^"]+)"', text)}
    edges = {}
    for a, b in re.findall(r'"(node\d+)" -> "(node\d+)"', text):
        edges.setdefault(names[a], set()).add(names[b])
    labels = {}
    for node, name in names.items():
        labels.setdefault(name, {name}).update(aliases[node])
    return edges, labels


def reachable(edges, start):
    seen, todo = set(), [start]
    while todo:
        for target in edges.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def link_errors(build):
    edges, labels = link_graph(build)
    for target, forbidden in FORBIDDEN_LINKS.items():
        if target not in labels:
            yield f"target {target} is gone: mend the table in this check"
            continue
        reached = set().union(*(labels.get(name, {name}) for name in reachable(edges, target)), set())
        for name in forbidden:
            if name in reached:
                yield f"target {target} reaches {name}"
    for private, users in PRIVATE_TARGETS.items():
        for target, links in edges.items():
            if private in links and not re.match(users, target):
                yield f"target {target} links {private}, which is private"


def main():
    source, build = map(pathlib.Path, sys.argv[1:3])
    errors = list(include_errors(source)) + list(link_errors(build))
    print("\n".join(errors) or "architecture: includes and links keep the arrows")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
