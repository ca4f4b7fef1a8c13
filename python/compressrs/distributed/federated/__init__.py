"""Federated learning: clients that keep their rows exchange logits on public rows, or weights.

The messages between machines are those of Flower (``pip install 'compressrs[flower]'``); clients
and strategies need only NumPy.
"""

from compressrs.distributed.federated.client import Client
from compressrs.distributed.federated.exchange import Reply, Strategy
from compressrs.distributed.federated.flower import client_app, server_app
from compressrs.distributed.federated.rounds import simulate
from compressrs.distributed.federated.strategies import FedAvg, FedDF, FedMD

__all__ = [
    "Client",
    "FedAvg",
    "FedDF",
    "FedMD",
    "Reply",
    "Strategy",
    "client_app",
    "server_app",
    "simulate",
]
