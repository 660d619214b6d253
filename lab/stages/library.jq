# Put before each jq expression of the stages. All of them ask about one pod or node.
def note($key): .metadata.annotations["lab.kreflex.dev/" + $key];
def number($key; $default): (note($key) // ($default | tostring) | tonumber);
def speed: number("speed"; 1);
# A word of an image's tag says a fault as the annotation does, and another after how many seconds: shop:v2-crash-5s.
def words: .image | split(":")[1:] | last // "" | split("-");
def bad_image:
  first((.spec.containers // [])[] | words as $words | {name, $words, fault: first($words[] | tags[.] // empty)});
def fault: note("fault") // bad_image.fault // "none";
def after:
  (note("after-seconds") | values | tonumber)
  // first(bad_image.words[] | select(endswith("s")) | rtrimstr("s") | tonumber?)
  // 0;
# A pod whose Job is Kreflex' own: lab/jobs.py runs its command as a process, and tells its status.
def is_process:
  (.metadata.labels // {}) as $labels
  | $labels["app.kubernetes.io/managed-by"] == "kreflex" and $labels["batch.kubernetes.io/job-name"] != null;
def alive: .metadata.deletionTimestamp == null and (is_process | not);
def ending: .metadata.deletionTimestamp != null and (is_process | not);
def has_status($type; $status): any((.status.conditions // [])[]; .type == $type and .status == $status);
def is($type): has_status($type; "True");

# The container that the fault is about, and its status.
def victim:
  if note("container") then note("container")
  elif fault == "init-crash" then (.spec.initContainers // [])[0].name // ""
  else (select(note("fault") == null) | bad_image.name) // .spec.containers[0].name end;
def statuses: (.status.initContainerStatuses // []) + (.status.containerStatuses // []);
def loop: victim as $name | first(statuses[] | select(.name == $name));
def crashes: fault as $fault | any(("crash-loop", "oom-killed", "exit-zero", "init-crash", "leak"); . == $fault);

# Containers that shall run for as long as the pod: the ordinary ones and the sidecars.
def lasting:
  [(.spec.initContainers // [])[] | select(.restartPolicy == "Always") | .name] as $sidecars
  | (.status.containerStatuses // []) + [(.status.initContainerStatuses // [])[] | select(.name | IN($sidecars[]))];
def all_running: (lasting | length > 0) and all(lasting[]; .state.running != null);

# The kubelet's back-off before the next start, in seconds: none after the first crash, then 10, 20, 40, 80, 160, 300.
def back_off: loop.restartCount as $restarts | if $restarts == 0 then 0 else [10 * pow(2; $restarts - 1), 300] | min end;
# It looks again after a minute at the latest; only then does a longer back-off show as CrashLoopBackOff.
def sync_period: 60;
def milliseconds: "\(. * 1000 | floor)ms";
def sped_up: speed as $speed | . / $speed | milliseconds;
