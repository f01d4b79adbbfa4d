#!/bin/sh
# Starts the RabbitMQ of compose.yaml with the users, permissions and exchanges of definitions.json. Their passwords are
# read from RABBITMQ_CORE_PASSWORD, RABBITMQ_RECOMMENDATION_PASSWORD and RABBITMQ_OPERATOR_PASSWORD: letters and digits
# only. They are filled in by standard input, so that `ps` does not show them.
set -eu
umask 077
# A restart finds the file of the start before, which belongs to another user.
rm -f /tmp/definitions.json
sed -f - /etc/tourin/definitions.json >/tmp/definitions.json <<SED
s/@CORE@/$RABBITMQ_CORE_PASSWORD/
s/@RECOMMENDATION@/$RABBITMQ_RECOMMENDATION_PASSWORD/
s/@OPERATOR@/$RABBITMQ_OPERATOR_PASSWORD/
SED
# The image drops root's rights before the server starts.
if [ "$(id -u)" -eq 0 ]; then chown rabbitmq /tmp/definitions.json; fi
exec docker-entrypoint.sh rabbitmq-server
