# The service, able to read encrypted rooms; PostgreSQL is given by URL. Runs as any user id, on a read-only root file system, without capabilities.
FROM python:3.12-slim AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /build && python -m venv --without-pip /opt/rtc-appservice
WORKDIR /src

# Dependencies first: they change less often than the sources.
COPY requirements/build.txt requirements/encryption.txt requirements/
RUN /build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt
RUN /build/bin/pip --python /opt/rtc-appservice/bin/python install --require-hashes --only-binary :all: \
        -r requirements/encryption.txt

COPY . .
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/rtc-appservice/bin/python install --no-deps --no-index /wheels/*.whl


FROM python:3.12-slim

LABEL org.opencontainers.image.title="rtc-appservice" \
      org.opencontainers.image.description="Audits how MatrixRTC media keys are distributed" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY --from=build /opt/rtc-appservice /opt/rtc-appservice

ENV PATH=/opt/rtc-appservice/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RTC_APPSERVICE_CONFIG=/data/config.yaml

# config.yaml and registration.yaml; nothing is written here.
WORKDIR /data
USER 10010:10010

# Of the homeserver, and of probes and scrapes. Inside, `appservice.hostname` must be 0.0.0.0 (and `metrics.hostname`
# too, if Prometheus is to reach it).
EXPOSE 29331 29332

# With another metrics.listen_port, or without metrics, give another health check.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:29332/live', timeout=3)"]

ENTRYPOINT ["rtc-appservice"]
CMD ["run"]
