package bed

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// StartFakeNode registers an ordinary Linux node that runs nothing: a pod bound
// to it is Running at once, and one that is deleted goes. It stands for the
// other nodes of a mixed cluster; it goes when the test ends.
func (b *Bed) StartFakeNode(t testing.TB, name string) {
	t.Helper()
	fake := &fakeNode{bed: b, name: name}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := b.Client.CoreV1().Nodes().Create(ctx, fake.object(), metav1.CreateOptions{}); err != nil {
		cancel()
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { fake.renewLease(ctx) })
	tasks.Go(func() { fake.servePods(ctx) })
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		if err := b.Client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	b.WaitFor(t, "node "+name+" takes pods", readyLimit, func() error {
		node, err := b.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil && len(node.Spec.Taints) > 0 {
			return errTainted
		}
		return err
	})
}

type fakeNode struct {
	bed  *Bed
	name string
}

// object is a node as a kubelet registers it.
func (f *fakeNode) object() *corev1.Node {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("4"),
		corev1.ResourceMemory:           resource.MustParse("8Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
		corev1.ResourcePods:             resource.MustParse("110"),
	}
	now := metav1.Now()
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: f.name, Labels: map[string]string{
			corev1.LabelHostname: f.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		}},
		Status: corev1.NodeStatus{
			Capacity: resources, Allocatable: resources,
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: f.name}},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion: "v1.37.2", ContainerRuntimeVersion: "fake://1", OperatingSystem: "linux", Architecture: "amd64",
			},
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
				LastHeartbeatTime: now, LastTransitionTime: now,
			}},
		},
	}
}

// renewLease keeps the node Ready, in the kubelet's rhythm. Errors mend
// themselves at the next turn, or show as a node that is lost.
func (f *fakeNode) renewLease(ctx context.Context) {
	leases := f.bed.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds := int32(40)
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: f.name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &f.name, LeaseDurationSeconds: &seconds},
	}
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		now := metav1.NowMicro()
		if held, err := leases.Get(ctx, f.name, metav1.GetOptions{}); err == nil {
			held.Spec.RenewTime = &now
			_, _ = leases.Update(ctx, held, metav1.UpdateOptions{})
		} else {
			lease.Spec.RenewTime = &now
			_, _ = leases.Create(ctx, lease, metav1.CreateOptions{})
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// servePods does what is needed for each pod that is bound here, and opens the
// watch again whenever it ends.
func (f *fakeNode) servePods(ctx context.Context) {
	for ctx.Err() == nil {
		watched, err := f.bed.Client.CoreV1().Pods(metav1.NamespaceAll).Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("spec.nodeName", f.name).String(),
		})
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		for event := range watched.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && event.Type != watch.Deleted {
				f.serve(ctx, pod)
			}
		}
	}
}

func (f *fakeNode) serve(ctx context.Context, pod *corev1.Pod) {
	pods := f.bed.Client.CoreV1().Pods(pod.Namespace)
	switch {
	case pod.DeletionTimestamp != nil:
		zero := int64(0)
		_ = pods.Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID},
		})
	case pod.Status.Phase == corev1.PodPending:
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": pod.UID},
			"status":   running(pod),
		})
		if err == nil {
			_, _ = pods.Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		}
	}
}

// running is the status of a pod whose containers all run.
func running(pod *corev1.Pod) corev1.PodStatus {
	now := metav1.Now()
	status := corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &now, ObservedGeneration: pod.Generation}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now, ObservedGeneration: pod.Generation,
		})
	}
	started := true
	for _, container := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: container.Name, Image: container.Image, ImageID: container.Image, ContainerID: "fake://" + container.Name,
			Ready: true, Started: &started, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return status
}

var errTainted = errors.New("it still has the taint of a node that is not ready")
