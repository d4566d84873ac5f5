"""The first step of the way of today: from a file with annotations, as the field has it, to what
`consul services register` takes and the flags of `consul connect redirect-traffic`. Written for this
comparison; it does as much as it must, so that it costs no more than it must."""

import argparse
import json

PREFIX = "consul.hashicorp.com/"
LISTS = {
    "transparent-proxy-exclude-inbound-ports": "-exclude-inbound-port",
    "transparent-proxy-exclude-outbound-ports": "-exclude-outbound-port",
    "transparent-proxy-exclude-outbound-cidrs": "-exclude-outbound-cidr",
    "transparent-proxy-exclude-uids": "-exclude-uid",
}


def words(value):
    return [word.strip() for word in str(value).split(",")]


def registration(notes):
    # No `proxy.mode`: the Consul that this is measured with is older than that.
    service = {"name": notes["connect-service"], "connect": {"sidecar_service": {}}}
    if "connect-service-port" in notes:
        service["port"] = int(notes["connect-service-port"])
    if "service-tags" in notes:
        service["tags"] = words(notes["service-tags"])
    meta = {key[len("service-meta-"):]: value for key, value in notes.items() if key.startswith("service-meta-")}
    if meta:
        service["meta"] = meta
    return {"service": service}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("annotations")
    parser.add_argument("registration")
    parser.add_argument("flags")
    arguments = parser.parse_args()
    with open(arguments.annotations) as file:
        annotations = json.load(file)["annotations"]
    notes = {key[len(PREFIX):]: value for key, value in annotations.items() if key.startswith(PREFIX)}
    with open(arguments.registration, "w") as file:
        json.dump(registration(notes), file, indent=2)
    flags = [f"{flag}={word}" for key, flag in LISTS.items() if key in notes for word in words(notes[key])]
    with open(arguments.flags, "w") as file:
        json.dump({"redirect": " ".join(flags)}, file)


main()
