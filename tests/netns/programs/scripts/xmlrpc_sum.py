"""xmlrpc: the standard library's server and proxy.

xmlrpc_sum.py serve | xmlrpc_sum.py use HOST PORT. It knows nothing of NATs.
"""

import sys
from xmlrpc.client import Fault, ServerProxy
from xmlrpc.server import SimpleXMLRPCServer


def serve() -> None:
    """Serve for ever."""
    with SimpleXMLRPCServer(("", 0), logRequests=False) as server:
        server.register_introspection_functions()
        server.register_function(lambda *numbers: sum(numbers), "sum")
        server.register_function(lambda name: {"hello": name}, "greet")
        print("listening on {}:{}".format(*server.server_address), flush=True)
        server.serve_forever()


def use(host: str, port: str) -> None:
    """Call what is there and what is not."""
    with ServerProxy(f"http://{host}:{port}") as proxy:
        print("methods", proxy.system.listMethods(), flush=True)
        print("sum", proxy.sum(*range(1000)), flush=True)
        print("greet", proxy.greet("welt"), flush=True)
        try:
            proxy.missing()
        except Fault as fault:
            print("fault", fault.faultString, flush=True)


if __name__ == "__main__":
    {"serve": serve, "use": use}[sys.argv[1]](*sys.argv[2:])
