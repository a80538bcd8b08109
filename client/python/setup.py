"""Generates expertd/v1/expertd_pb2.py from the repository's proto when a wheel is built; everything else is in pyproject.toml."""
import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = os.path.dirname(os.path.abspath(__file__))
PROTO = "expertd/v1/expertd.proto"


def proto_root() -> str:
    """The repository's proto folder; a source distribution carries a copy."""
    for root in (os.path.join(HERE, "proto"), os.path.join(HERE, "..", "..", "proto")):
        if os.path.exists(os.path.join(root, PROTO)):
            return root
    raise FileNotFoundError(f"{PROTO}: build from a checkout of expertd, client/python beside proto/")


class BuildWithStubs(build_py):
    def run(self) -> None:
        super().run()
        import grpc_tools
        from grpc_tools import protoc

        os.makedirs(self.build_lib, exist_ok=True)
        well_known = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
        arguments = ["protoc", f"-I{proto_root()}", f"-I{well_known}", f"--python_out={self.build_lib}", f"--pyi_out={self.build_lib}", PROTO]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc failed on {PROTO}")
        open(os.path.join(self.build_lib, "expertd", "v1", "__init__.py"), "w").close()


shutil.rmtree(os.path.join(HERE, "build"), ignore_errors=True)  # setuptools would pack what an earlier build left there
setup(cmdclass={"build_py": BuildWithStubs})
