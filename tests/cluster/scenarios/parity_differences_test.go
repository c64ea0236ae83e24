package scenarios

import "krustlet.dev/tests/cluster/parity"

// allowedDifferences are what users see differently of a pod on a krustlet node
// and on a kubelet's, and why that is meant. One that is not here fails the test,
// and so does one that is here and no longer occurs.
var allowedDifferences = []parity.Allowed{}
