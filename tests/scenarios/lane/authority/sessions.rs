//! What the authority remembers of sessions, and for how long.

use spacetime_sync_proto::Label;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_forgotten_once_everything_about_it_is_old() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    connection
        .execute(
            "update runtime.sync_session_retention set keep = interval '1 day';
             insert into runtime.sync_sessions (session_id, user_id, device_id, bound_at, revoked_at, delivered_at)
             select id, case when bound is not null then 'u' end, case when bound is not null then 'd' end,
                 now() - bound * interval '1 day', now() - revoked * interval '1 day', now() - told * interval '1 day'
             from (values
                 ('bound-long-ago', 31, null, null),
                 ('bound', 29, null, null),
                 ('bound-long-ago-and-revoked', 90, 29, 29),
                 ('revoked-long-ago', 90, 31, 31),
                 ('revoked-long-ago-and-never-used', null, 31, 0),
                 ('revoked', null, 29, 29),
                 ('revoked-long-ago-and-not-told', 90, 31, null)
             ) as s(id, bound, revoked, told)",
        )
        .await
        .unwrap();
    let (mut after, mut gone, mut portions) = (None::<Label>, 0, 0);
    loop {
        let (last, some) = authority.forget_sessions(30, after.as_ref(), 2).await.unwrap();
        assert!(some <= 2);
        gone += some;
        if last.is_none() {
            break;
        }
        (after, portions) = (last, portions + 1);
    }
    assert_eq!((gone, portions), (3, 4));
    let left: Vec<String> = sqlx::query_scalar("select session_id from runtime.sync_sessions order by session_id")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert_eq!(
        left,
        [
            "bound",
            "bound-long-ago-and-revoked",
            "revoked",
            "revoked-long-ago-and-not-told"
        ]
    );
}
