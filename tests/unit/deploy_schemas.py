"""What Kubernetes and KubeRay take of the kinds in `deploy/kuberay`, as JSON Schema: the fields that are used there, each with
its type, and no other. Written after the API of Kubernetes 1.34 and the RayCluster of KubeRay 1.7 (`ray.io/v1`); with the
operator's own definition at hand, `test_deploy_manifests.py` holds the manifests against that too.
"""

from typing import Any

Schema = dict[str, Any]


def fields(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def items(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def mapping(pattern: str = ".*", keys: Schema | None = None) -> Schema:
    """A mapping of free keys, to strings. Kubernetes takes no number for a string."""
    return {"type": "object", "additionalProperties": {"type": "string", "pattern": pattern}, "propertyNames": keys or {}}


TEXT: Schema = {"type": "string"}
YES: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PORT_NAME: Schema = {**NAME, "maxLength": 15}
PORT_OR_NAME: Schema = {"anyOf": [PORT, PORT_NAME]}
PATH: Schema = {"type": "string", "pattern": "^/"}
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
LABELS = mapping(r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", {"pattern": r"^([a-z0-9.-]+/)?[A-Za-z0-9][-A-Za-z0-9_.]*$"})
RESOURCES = fields(
    requests=mapping(QUANTITY, one_of("cpu", "memory", "storage")), limits=mapping(QUANTITY, one_of("cpu", "memory"))
)
META = fields("name", name=NAME, namespace=NAME, labels=LABELS)
SELECTOR = fields(matchLabels=LABELS)

PROFILE = fields("type", type=one_of("RuntimeDefault", "Unconfined", "Localhost"))
TIMES: Schema = {"type": "integer", "minimum": 1}
PROBE: Schema = {
    **fields(
        httpGet=fields("path", "port", path=PATH, port=PORT_OR_NAME),
        tcpSocket=fields("port", port=PORT_OR_NAME),
        periodSeconds=TIMES,
        failureThreshold=TIMES,
        timeoutSeconds=TIMES,
    ),
    "oneOf": [{"required": ["httpGet"]}, {"required": ["tcpSocket"]}],
}
ENV: Schema = {
    **fields("name", name=TEXT, value=TEXT, valueFrom=fields(secretKeyRef=fields("name", "key", name=NAME, key=TEXT))),
    "oneOf": [{"required": ["value"]}, {"required": ["valueFrom"]}],
}
CONTAINER = fields(
    "name",
    "image",
    name=NAME,
    image=TEXT,
    args=items(TEXT),
    env=items(ENV),
    ports=items(fields("containerPort", name=PORT_NAME, containerPort=PORT)),
    resources=RESOURCES,
    securityContext=fields(
        allowPrivilegeEscalation=YES,
        capabilities=fields(drop=items(TEXT)),
        procMount=one_of("Default", "Unmasked"),
    ),
    startupProbe=PROBE,
    livenessProbe=PROBE,
    readinessProbe=PROBE,
    volumeMounts=items(fields("name", "mountPath", name=NAME, mountPath=PATH, subPath=TEXT, readOnly=YES)),
)
VOLUME: Schema = {
    **fields("name", name=NAME, emptyDir=fields(), persistentVolumeClaim=fields("claimName", claimName=NAME)),
    "minProperties": 2,
    "maxProperties": 2,
}
POD = fields(
    "metadata",
    "spec",
    metadata=fields("labels", labels=LABELS),
    spec=fields(
        "containers",
        hostUsers=YES,
        enableServiceLinks=YES,
        automountServiceAccountToken=YES,
        terminationGracePeriodSeconds=COUNT,
        securityContext=fields(
            runAsNonRoot=YES,
            runAsUser=COUNT,
            runAsGroup=COUNT,
            fsGroup=COUNT,
            fsGroupChangePolicy=one_of("OnRootMismatch", "Always"),
            seccompProfile=PROFILE,
            appArmorProfile=PROFILE,
        ),
        containers=items(CONTAINER),
        volumes=items(VOLUME),
    ),
)
PEER: Schema = {
    **fields(podSelector=SELECTOR, namespaceSelector=SELECTOR, ipBlock=fields("cidr", cidr=TEXT)),
    "minProperties": 1,
}
RULE_PORTS = items(fields("port", protocol=one_of("TCP", "UDP"), port=PORT))
START: Schema = mapping(keys={"pattern": "^[a-z]+(-[a-z]+)*$"})


def kind(name: str, version: str, spec: Schema | None, metadata: Schema = META) -> Schema:
    wanted = {"spec": spec} if spec else {}
    top = ("apiVersion", "kind", "metadata", *wanted)
    return fields(*top, apiVersion={"const": version}, kind={"const": name}, metadata=metadata, **wanted)


DEPLOYMENT = fields(
    "selector",
    "template",
    replicas=COUNT,
    strategy=fields("type", type=one_of("Recreate", "RollingUpdate")),
    selector=SELECTOR,
    template=POD,
)
SERVICE = fields(
    type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    selector=LABELS,
    ports=items(fields("port", name=PORT_NAME, port=PORT, targetPort=PORT_OR_NAME, protocol=one_of("TCP", "UDP"))),
)
CLAIM = fields(
    "accessModes",
    "resources",
    accessModes=items(one_of("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod")),
    resources=RESOURCES,
    storageClassName=NAME,
)
POLICY = fields(
    "podSelector",
    podSelector=SELECTOR,
    policyTypes=items(one_of("Ingress", "Egress")),
    ingress=items(fields(**{"from": items(PEER)}, ports=RULE_PORTS)),
    egress=items(fields(to=items(PEER), ports=RULE_PORTS)),
)
RAY_CLUSTER = fields(
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=fields(mode=one_of("disabled", "token")),
    headGroupSpec=fields("template", serviceType=one_of("ClusterIP", "NodePort"), rayStartParams=START, template=POD),
    workerGroupSpecs=items(
        fields(
            "groupName",
            "maxReplicas",
            "minReplicas",
            "template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=START,
            template=POD,
        )
    ),
)
KINDS: dict[str, Schema] = {
    "Namespace": kind("Namespace", "v1", None),
    "PersistentVolumeClaim": kind("PersistentVolumeClaim", "v1", CLAIM),
    "Service": kind("Service", "v1", SERVICE),
    "Deployment": kind("Deployment", "apps/v1", DEPLOYMENT),
    "NetworkPolicy": kind("NetworkPolicy", "networking.k8s.io/v1", POLICY),
    "RayCluster": kind("RayCluster", "ray.io/v1", RAY_CLUSTER),
}
