package scenarios

import "krustlet.dev/tests/cluster/parity"

// allowedDifferences are what users see differently of a pod on a krustlet node
// and on a kubelet's, and why that is meant. One that is not here fails the test,
// and so does one that is here and no longer occurs, unless timing decides.
var allowedDifferences = []parity.Allowed{
	// What the node is.
	{
		Field: "statuses/**containerID", Kubelet: "containerd://<64 digits>", Krustlet: "wasmtime://<64 digits>",
		Why: "an id begins with the runtime's name",
	},
	{
		Field: "described/**Container ID", Kubelet: "containerd://<64 digits>", Krustlet: "wasmtime://<64 digits>",
		Why: "the same, as kubectl shows it",
	},
	{
		Field: "statuses/**/image", Kubelet: "sha256:<64 digits>",
		Why: "containerd knows an image that was pulled by digest by its id only; krustlet tells what was asked for",
	},
	{
		Case: "crash-loop", Field: "logs/main", Kubelet: "hello: /missing: No such file**",
		Krustlet: "hello: /missing: Capabilities insufficient**",
		Why:      "a guest has no directory at / to look into, and WASI has its own words and numbers for it",
	},

	// What krustlet does not do.
	{
		Field: "statuses/*/resources", Kubelet: "{}", Krustlet: parity.Absent,
		Why: "resources of whole pods are not offered",
	},
	{
		Field: "statuses/**/resources/limits/memory", Kubelet: "9007199254740988Ki", Krustlet: parity.Absent,
		Why: "what cgroups v1 tell of a pod without a limit; krustlet offers no resources of whole pods",
	},

	// How pods end.
	{
		Case: "deployment", Field: "statuses/gone/**/exitCode", Kubelet: "137", Krustlet: "143",
		Why: "process 1 of a Linux container ignores SIGTERM that it does not handle, and is killed after its grace; a guest cannot ignore it",
	},
	{Case: "deployment", Field: "steps/Failed; deleted; **terminated(Error 137)**", Why: "the same as a step"},
	{Case: "deployment", Field: "steps/Failed; deleted; **terminated(Error 143)**", Why: "the same as a step"},
	{
		Case: "*-image", Field: "steps/Pending; deleted; main waiting(ContainerCreating)**",
		Why: "the kubelet forgets why a container waited as soon as its pod is deleted",
	},

	// When things are seen. A status holds what is true when it is sent: short
	// states may be in none.
	{
		Field: "steps/Pending; **waiting(**Ready=False(ContainersNotReady)", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Why: "krustlet does not tell of a wait that is over within 50 ms",
	},
	{
		Field: "steps/Pending; pll running**", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Why: "icepll runs for a millisecond",
	},
	{
		Field: "steps/Running; main**", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Why: "a guest that ends at once has ended before a status is sent, and krustlet goes on at once",
	},
	{
		Field: "steps/Running; main**", Kubelet: parity.Absent, Krustlet: "seen", Chance: true,
		Why: "the kubelet looks at its containers once a second, and may miss a state that krustlet shows",
	},
	{
		Field: "steps/Running; deleted; **terminated(**", Kubelet: parity.Absent, Krustlet: "seen", Chance: true,
		Why: "between a container's end and its sandbox's a status may be sent, or not",
	},
	{
		// The texts are the same: only how often may differ.
		Case: "*-image", Field: "events/Failed*", Chance: true,
		Kubelet:  "Warning: Error: ErrImagePull (**)\nWarning: Error: ImagePullBackOff (**)\nWarning: Failed to pull image \"<**>\": <why> (**)",
		Krustlet: "Warning: Error: ErrImagePull (**)\nWarning: Error: ImagePullBackOff (**)\nWarning: Failed to pull image \"<**>\": <why> (**)",
		Why:      "the kubelet tries once more before it backs off, and tells it again",
	},
	{
		Case: "*-image", Field: "events/Pulling*", Chance: true,
		Kubelet: "Normal: Pulling image \"<**>\" (**)", Krustlet: "Normal: Pulling image \"<**>\" (**)",
		Why: "the same",
	},

	// The recording's crash loop was deleted during its fifth run, for the kubelet
	// tells of a wait when it is nearly over; krustlet's is deleted in the wait.
	{Case: "crash-loop", Field: "described/Conditions", Chance: true, Why: "it ran when it was described"},
	{Case: "crash-loop", Field: "described/Containers/main/*", Chance: true, Why: "it ran when it was described"},
	{Case: "crash-loop", Field: "described/Containers/main/State/*", Chance: true, Why: "it ran when it was described"},
	{Case: "crash-loop", Field: "statuses/gone/containerStatuses/main/restartCount", Chance: true, Why: "it had run once more"},
	{Case: "crash-loop", Field: "steps/**; deleted; **", Chance: true, Why: "it ran when it was deleted"},
}
