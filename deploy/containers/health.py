"""Whether a program in this container is healthy: exit status 0 or 1.

health.py http://HOST:PORT/metrics    its metrics page is served
health.py HOST:PORT                   its gRPC health service says SERVING, in plaintext
"""

import sys
import urllib.request

SECONDS = 5
"""Below the Dockerfile's --timeout of 10 s, by what Python and the import of grpc take on a slow machine:
what is wrong is said before Docker ends the check."""
# The container is asked itself: a proxy of the environment (http_proxy, …) has no part in it.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", "")]


def main() -> int:
    """Ask; anything but a clear yes is a no."""
    (target,) = sys.argv[1:]
    try:
        if target.startswith("http://"):
            with DIRECT.open(target, timeout=SECONDS) as page:
                return 0 if page.status == 200 else 1
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        with grpc.insecure_channel(target, options=OPTIONS) as channel:
            service = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            answer = service.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1
    except Exception as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
