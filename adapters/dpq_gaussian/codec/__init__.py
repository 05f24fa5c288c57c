"""The codec of splat scenes: one ``.dpq`` file, decodable in parts (FORMAT.md beside this file)."""

from dpq_gaussian.codec.decoding import SceneFile, decode_scene, iter_chunks
from dpq_gaussian.codec.encoding import Encoded, encode

__all__ = ["Encoded", "SceneFile", "decode_scene", "encode", "iter_chunks"]
