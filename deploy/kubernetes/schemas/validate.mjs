// Standard input: a JSON array of Kubernetes objects, of the kinds below. Exit status 1 names what their schemas refuse.
import { readFileSync } from "node:fs";
import { Gateway, GRPCRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const models = { Gateway, GRPCRoute, PodMonitor };

let refused = 0;
for (const { apiVersion, kind, ...rest } of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    const expected = models[kind].apiVersion;
    if (apiVersion !== expected) throw new Error(`is ${apiVersion}, expected ${expected}`);
    new models[kind](rest).validate();
    console.log(`${kind} ${rest.metadata.name}: valid`);
  } catch (error) {
    console.error(`${kind} ${rest.metadata.name}: ${error.message}`);
    refused = 1;
  }
}
process.exit(refused);
