# syntax=docker/dockerfile:1
#
# The consumer with the coroutines of an application: its package is installed beside iu-listen. Build it where the
# application is:
#
#     docker build -f app.Dockerfile --build-arg APP=shop.targets -t shop-listen:1 .

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=iu-listen:0.1.0 /opt/iu-listen /opt/iu-listen
WORKDIR /src
COPY . .
# The environment of the image has no pip of its own.
RUN pip --python /opt/iu-listen/bin/python install .

FROM iu-listen:0.1.0
ARG APP
COPY --from=build /opt/iu-listen /opt/iu-listen
ENV IU_LISTEN_APP=${APP}
