"""Sessions of Spark Connect, whose driver is a server: they have tables and queries, and none of our capabilities."""

from mirrorspark.spark_session.session import Session

USE_CLASSIC = (
    "use a classic one: local[N], spark://, yarn or k8s:// as .master(...) in place of .remote(...), with the driver "
    "where this program runs"
)


class ConnectSession(Session):
    """A session of Spark Connect."""

    kind = "Spark Connect"
    remedy = USE_CLASSIC
