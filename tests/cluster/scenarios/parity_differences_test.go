package scenarios

import (
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/parity"
)

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

	{
		Field: "statuses/*/podIPs/1/ip", Kubelet: parity.Absent, Krustlet: "<address>",
		Why: "pods of the cluster have an address of each family now; those of the recorded one had one",
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
	{
		Case: "deployment", Kubelet: "seen", Krustlet: parity.Absent, Why: "the same as a step",
		Field: "steps/Failed; deleted; pll terminated(Completed 0) restarts=0; main terminated(Error 137) restarts=0; Ready=False(PodFailed)",
	},
	{
		Case: "deployment", Kubelet: parity.Absent, Krustlet: "seen", Why: "the same as a step",
		Field: "steps/Failed; deleted; pll terminated(Completed 0) restarts=0; main terminated(Error 143) restarts=0; Ready=False(PodFailed)",
	},
	{
		Case: "*-image", Field: "steps/Pending; deleted; main waiting(ContainerCreating)**",
		Why: "the kubelet forgets why a container waited as soon as its pod is deleted",
	},

	// When things are seen. A status holds what is true when it is sent: short
	// states may be in none.
	{
		Field:   "steps/Pending; main waiting(ContainerCreating) restarts=0; Ready=False(ContainersNotReady)",
		Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Why: "krustlet does not tell of a wait that is over within 50 ms",
	},
	{
		Case: "deployment", Field: "steps/Pending; pll **; main waiting(PodInitializing) restarts=0; Ready=False(ContainersNotReady)",
		Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Why: "the same; and icepll runs for a millisecond",
	},
	{
		Field: "steps/Running; main running restarts=**; Ready=True()", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Why: "a guest that ends at once has ended before a status is sent",
	},
	{
		Case: "job-completes", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Field: "steps/Running; main terminated(Completed 0) restarts=0; Ready=False(PodCompleted)",
		Why:   "krustlet may tell of the container's end with its pod's",
	},
	{
		Case: "job-fails", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Field: "steps/Running; main terminated(Error 42) restarts=0; Ready=False(PodFailed)",
		Why:   "the same",
	},
	{
		Case: "crash-loop", Kubelet: "seen", Krustlet: parity.Absent, Chance: true,
		Field: "steps/Running; main terminated(Error 2) restarts=**; Ready=False(ContainersNotReady)",
		Why:   "krustlet may go on at once, to the next run or to the wait for it; each wait is told",
	},
	{
		Case: "crash-loop", Kubelet: parity.Absent, Krustlet: "seen", Recurs: true, Chance: true,
		Field: "steps/Running; main running restarts=**; Ready=True()",
		Why:   "a loop that is looked at late has gone round once more",
	},
	{
		Case: "crash-loop", Kubelet: parity.Absent, Krustlet: "seen", Recurs: true, Chance: true,
		Field: "steps/Running; main terminated(Error 2) restarts=**; Ready=False(ContainersNotReady)",
		Why:   "the same",
	},
	{
		Case: "deployment", Kubelet: parity.Absent, Krustlet: "seen", Chance: true,
		Field: "steps/Running; deleted; pll terminated(Completed 0) restarts=0; main terminated(Error 143) restarts=0; Ready=False(ContainersNotReady)",
		Why:   "between a container's end and its sandbox's a status may be sent, or not",
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
	{
		Case: "crash-loop", Field: "described/Conditions", Why: "it ran when it was described",
		Kubelet:  "Type Status PodReadyToStartContainers True Initialized True Ready True ContainersReady True PodScheduled True",
		Krustlet: "Type Status PodReadyToStartContainers True Initialized True Ready False ContainersReady False PodScheduled True",
	},
	{Case: "crash-loop", Field: "described/Containers/main/Ready", Kubelet: "True", Krustlet: "False", Why: "the same"},
	{Case: "crash-loop", Field: "described/Containers/main/Restart Count", Kubelet: "4", Krustlet: "3", Why: "it ran once more"},
	{Case: "crash-loop", Field: "described/Containers/main/State", Kubelet: "Running", Krustlet: "Waiting", Why: "it ran when it was described"},
	{
		Case: "crash-loop", Field: "described/Containers/main/State/Reason", Kubelet: parity.Absent, Krustlet: "CrashLoopBackOff",
		Why: "the same",
	},
	{Case: "crash-loop", Field: "described/Containers/main/State/Started", Kubelet: "<time>", Krustlet: parity.Absent, Why: "the same"},
	{Case: "crash-loop", Field: "statuses/gone/containerStatuses/main/restartCount", Kubelet: "4", Krustlet: "3", Why: "it had run once more"},
	{
		Case: "crash-loop", Kubelet: "seen", Krustlet: parity.Absent, Why: "it ran when it was deleted",
		Field: "steps/Running; deleted; main running restarts=4; Ready=True()",
	},
	{
		Case: "crash-loop", Kubelet: parity.Absent, Krustlet: "seen", Chance: true, Why: "it waited when it was deleted, and may have gone before that was told",
		Field: "steps/Running; deleted; main waiting(CrashLoopBackOff) restarts=3; Ready=False(ContainersNotReady)",
	},
	{
		Case: "crash-loop", Field: "steps/Running; deleted; main terminated(Error 2) restarts=**; Ready=False(ContainersNotReady)", Chance: true,
		Why: "it had run once more; between a container's end and its sandbox's a status may be sent, or not",
	},
	{
		Case: "crash-loop", Field: "steps/Failed; deleted; main terminated(Error 2) restarts=**; Ready=False(PodFailed)", Recurs: true,
		Why: "it had run once more",
	},
}

// TestNoOtherStepOfALoopIsAllowed: what timing decides is which rounds of a loop
// are seen, not what they hold.
func TestNoOtherStepOfALoopIsAllowed(t *testing.T) {
	const ours, theirs = parity.Absent + " seen", "seen " + parity.Absent
	for _, one := range []struct{ name, step, who string }{
		{"crash-loop", "Running; main terminated(Error 1) restarts=1; Ready=False(ContainersNotReady)", ours},
		{"crash-loop", "Running; main terminated(Completed 0) restarts=1; Ready=False(ContainersNotReady)", ours},
		{"crash-loop", "Running; main terminated(OOMKilled 137) restarts=0; Ready=False(ContainersNotReady)", ours},
		{"crash-loop", "Running; main running restarts=1; Ready=False(ContainersNotReady)", ours},
		{"crash-loop", "Running; main waiting(CrashLoopBackOff) restarts=0; Ready=False(ContainersNotReady)", ours},
		{"crash-loop", "Running; main waiting(RunContainerError) restarts=1; Ready=False(ContainersNotReady)", ours},
		{"crash-loop", "Running; main waiting(CrashLoopBackOff) restarts=2; Ready=False(ContainersNotReady)", theirs},
		{"crash-loop", "Failed; deleted; main terminated(Error 137) restarts=3; Ready=False(PodFailed)", ours},
		{"crash-loop", "Succeeded; deleted; main terminated(Error 2) restarts=3; Ready=False(PodFailed)", ours},
		{"job-fails", "Running; main terminated(Error 1) restarts=0; Ready=False(PodFailed)", ours},
		{"job-fails", "Running; main running restarts=1; Ready=True()", ours},
		{"job-fails", "Failed; main terminated(Error 42) restarts=0; Ready=False(PodFailed)", theirs},
		{"absent-image", "Pending; main waiting(ErrImagePull) restarts=0; Ready=False(ContainersNotReady)", theirs},
		{"absent-image", "Pending; main waiting(CreateContainerError) restarts=0; Ready=False(ContainersNotReady)", ours},
		{"deployment", "Pending; pll terminated(Error 1) restarts=0; main waiting(PodInitializing) restarts=0; Ready=False(ContainersNotReady)", ours},
		{"deployment", "Running; deleted; pll terminated(Completed 0) restarts=0; main terminated(Error 1) restarts=0; Ready=False(ContainersNotReady)", ours},
	} {
		kubelet, krustlet, _ := strings.Cut(one.who, " ")
		// As if the other node had shown the same in another round.
		difference := parity.Difference{Case: one.name, Field: "steps/" + one.step, Kubelet: kubelet, Krustlet: krustlet, Recurs: true}
		if unlisted, _ := parity.Judge([]parity.Difference{difference}, allowedDifferences); len(unlisted) != 1 {
			t.Errorf("it is allowed: %s", difference)
		}
	}
}
