# Before SIGTERM, on which Envoy ends at once: tells clients to go elsewhere, and waits for what is under way.
ask() {
  exec 3<>/dev/tcp/127.0.0.1/${ADMIN_PORT}
  printf '%s %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
  cat <&3
  exec 3>&-
}
# From here on every answer closes its connection, and no probe finds this Envoy ready.
ask POST /healthcheck/fail >/dev/null
# Until nobody's list of endpoints has this pod: what still comes is served.
sleep 5
for _ in $(seq ${DRAIN_S}); do
  case "$(ask GET '/stats?filter=^http\.front\.downstream_rq_active$')" in
    *"downstream_rq_active: 0"*) exit 0 ;;
  esac
  sleep 1
done
